"""What was sent to which replica: prefixes as chains of hashed blocks, bounded per replica.

A block is BLOCK tokens, and its key hashes the key before it with these tokens, so that a key
stands for all of a prompt up to its block's end, and for the space that the prompt is in. Tokens
themselves aren't kept: prompts whose keys collide would be sent to the wrong replica, where they
are computed as any other.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

BLOCK = 128  # tokens

Keys = list[int]


class SentPrefixes:
    """Of each replica the blocks that it was sent last, as many as its own cache holds. As in that
    cache, what was used longest ago goes first, and a block never before those that follow it.
    """

    def __init__(self) -> None:
        self._seed = random.SystemRandom().getrandbits(64)  # nobody else can make keys collide
        self._bounds: dict[int, int] = {}  # replica: blocks
        self._blocks: dict[int, OrderedDict[int, None]] = {}  # replica: keys, the latest one last

    def add(self, replica: int, cache_tokens: int) -> None:
        """A replica with nothing in its cache, which has room for so many tokens."""
        self._bounds[replica] = cache_tokens // BLOCK
        self._blocks[replica] = OrderedDict()

    def remove(self, replica: int) -> None:
        """Forgets the replica and what it had."""
        del self._bounds[replica], self._blocks[replica]

    def num_tokens(self, replica: int) -> int:
        """Tokens of the replica's blocks."""
        return BLOCK * len(self._blocks[replica])

    def keys(self, space: str | bytes, tokens: Sequence[int], known: Keys | None = None) -> Keys:
        """The keys of the whole blocks of `tokens`; `known` are those of their beginning."""
        keys = list(known) if known else []
        before = keys[-1] if keys else hash((self._seed, space))
        for begin in range(BLOCK * len(keys), len(tokens) - BLOCK + 1, BLOCK):
            before = hash((before, tuple(tokens[begin : begin + BLOCK])))
            keys.append(before)
        return keys

    def matched(self, replica: int, keys: Keys) -> int:
        """Tokens of the blocks from the first one on that the replica has."""
        blocks = self._blocks[replica]
        if not keys or keys[0] not in blocks:
            return 0
        # Who has a block has all before it.
        low, high = 1, len(keys)
        while low < high:
            middle = (low + high + 1) // 2
            if keys[middle - 1] in blocks:
                low = middle
            else:
                high = middle - 1
        return BLOCK * low

    def insert(self, replica: int, keys: Keys) -> None:
        """The replica was sent these blocks now."""
        blocks, bound = self._blocks[replica], self._bounds[replica]
        for key in reversed(keys[:bound]):  # the first one is the latest
            blocks[key] = None
            blocks.move_to_end(key)
        while len(blocks) > bound:
            blocks.popitem(last=False)
