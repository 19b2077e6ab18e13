"""What was used lately, within bytes and a number."""

from __future__ import annotations

import random

from minisgl.text.recently_used import RecentlyUsed


def test_what_was_used_longest_ago_goes_first() -> None:
    kept = RecentlyUsed[str, bytes](100, 3, len)
    for key in "abc":
        kept.add(key, b"x" * 30)
    assert kept.get("a") is not None
    kept.add("d", b"x" * 10)  # a fourth
    assert (kept.get("b"), kept.num_bytes) == (None, 70)
    kept.add("e", b"x" * 60)
    assert [key for key in "abcde" if kept.get(key)] == ["a", "d", "e"]
    kept.add("f", b"x" * 101)
    assert (len(kept), kept.num_bytes) == (0, 0)


def test_bytes_are_those_of_what_is_there_and_each_value_goes_once() -> None:
    rng = random.Random(0)
    there: dict[int, int] = {}  # sizes of values that came and didn't go, by their numbers

    def take(value: tuple[int, int]) -> int:
        there[value[0]] = value[1]
        return value[1]

    kept = RecentlyUsed[int, tuple[int, int]](1000, 20, take, lambda value: there.pop(value[0]))
    for number in range(2000):
        key = rng.randrange(40)
        if rng.random() < 0.2:
            assert (kept.get(key) is None) == (kept.remove(key) is None)
        else:
            kept.add(key, (number, rng.randrange(150)))
        assert kept.num_bytes == sum(there.values()) <= 1000
        assert len(kept) == len(there) <= 20
