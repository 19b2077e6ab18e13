"""What was used lately, kept within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """Values by their keys. Those that were used longest ago are dropped."""

    def __init__(
        self,
        max_bytes: int,
        max_count: int,
        take: Callable[[Value], int],
        drop: Callable[[Value], int] | None = None,
    ) -> None:
        """`take` is called with each value that comes and says how many bytes it takes, `drop` with
        each that goes and says how many that gives back; without it as many.
        """
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._take = take
        self._drop = drop or take
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Key) -> Value | None:
        """The key's value, which is used by that; None where there is none."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def add(self, key: Key, value: Value) -> None:
        """Keeps a value, in place of the key's. One that is too large for all is dropped, too."""
        self.remove(key)
        self._values[key] = value
        self.num_bytes += self._take(value)
        while self.num_bytes > self._max_bytes or len(self._values) > self._max_count:
            self.num_bytes -= self._drop(self._values.popitem(last=False)[1])

    def remove(self, key: Key) -> Value | None:
        """The key's value, which is kept no longer."""
        value = self._values.pop(key, None)
        if value is not None:
            self.num_bytes -= self._drop(value)
        return value
