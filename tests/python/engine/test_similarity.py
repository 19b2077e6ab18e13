"""How much embeddings are alike."""

from __future__ import annotations

import math
from array import array

import pytest

from minisgl.engine.similarity import cosine, pairs
from minisgl.sampling_params import ParameterError


def packed(*numbers: float) -> bytes:
    return array("f", numbers).tobytes()


def test_a_cosine_keeps_to_its_bounds() -> None:
    assert cosine(packed(1, 0.001), packed(1, 0.001)) == 1
    assert cosine(packed(1, 0.001), packed(-1, -0.001)) == -1


def test_pairs() -> None:
    assert pairs(1, 3) == [(0, 1), (0, 2), (0, 3)]
    assert pairs(2, 2) == [(0, 2), (1, 3)]
    assert pairs(1, 0) == pairs(0, 0) == []
    for counts in ((2, 1), (2, 3), (0, 1)):
        with pytest.raises(ParameterError, match=rf"as many as text_2 \({counts[1]}\), got"):
            pairs(*counts)


def test_what_is_no_number_is_like_nothing() -> None:
    assert math.isnan(cosine(packed(math.nan, 1), packed(0, 1)))
