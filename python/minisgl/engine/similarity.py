"""Embeddings as they come from the engine, and how much they are alike."""

from __future__ import annotations

import operator
from array import array


def numbers(embedding: bytes) -> list[float]:
    """What an Output's embedding says."""
    return array("f", embedding).tolist()


def cosine(one: bytes, other: bytes) -> float:
    """The cosine of the angle between two embeddings of length 1, -1 to 1; 0 where one of them is
    all zeros, and not a number where one has one.
    """
    product: float = sum(map(operator.mul, array("f", one), array("f", other)))
    return max(min(product, 1.0), -1.0)
