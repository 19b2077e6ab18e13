"""How much embeddings are alike."""

from __future__ import annotations

import math
from array import array

from minisgl.engine.similarity import cosine


def packed(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


def test_a_cosine_keeps_to_its_bounds() -> None:
    assert cosine(packed(1, 0.001), packed(1, 0.001)) == 1
    assert cosine(packed(1, 0.001), packed(-1, -0.001)) == -1


def test_what_is_no_number_is_like_nothing() -> None:
    assert math.isnan(cosine(packed(math.nan, 1), packed(0, 1)))
