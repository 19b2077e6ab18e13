"""Embeddings as they come from the engine, how much they are alike, and which are compared."""

from __future__ import annotations

import operator
from array import array

from minisgl.sampling_params import ParameterError


def numbers(embedding: bytes) -> list[float]:
    """What an Output's embedding says."""
    return array("f", embedding).tolist()


def pairs(num_first: int, num_second: int) -> list[tuple[int, int]]:
    """Which texts are compared: each of the second ones with the one first text, or with the one at
    its place. The numbers are places in a list of the first texts with the second ones behind them.
    ParameterError where there are neither one nor as many first texts.
    """
    if num_first not in (1, num_second):
        raise ParameterError(
            "text_1",
            f"text_1 must have 1 text or as many as text_2 ({num_second}), got {num_first}",
        )
    return [(0 if num_first == 1 else place, num_first + place) for place in range(num_second)]


def cosine(one: bytes, other: bytes) -> float:
    """The cosine of the angle between two embeddings of length 1, -1 to 1; 0 where one of them is
    all zeros, and not a number where one has one.
    """
    product: float = sum(map(operator.mul, array("f", one), array("f", other)))
    return max(min(product, 1.0), -1.0)
