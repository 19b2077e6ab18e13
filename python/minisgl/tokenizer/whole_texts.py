"""The texts of tokens that are whole characters, as JSON has them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import repeat
from typing import Protocol

import msgspec


class Reading(Protocol):
    """Where the reader of a text is, as long as it knows what comes next without reading it.
    Hashable; there are a few.
    """

    def step(self, text: str) -> tuple[str, Reading] | None:
        """What is shown at a piece of text, part of which may be shown later, and where the reader
        is behind it; None where that has to be read.
        """
        ...


class WholeTexts(dict[int, bytes | None]):
    """Token id -> its text as it stands within a JSON string, filled as it is asked; None for a
    token whose bytes aren't whole characters.
    """

    def __init__(self, token_bytes: dict[int, bytes]) -> None:
        """`token_bytes` is filled as it is asked, too, and keeps no id that nobody has."""
        super().__init__()
        self._bytes = token_bytes
        self._lengths: dict[int, int] = {}  # id -> characters, of those that were asked for
        self._passing: dict[Reading, PassingTexts] = {}

    def passing(self, reading: Reading) -> PassingTexts:
        """What is shown at these texts by a reading; kept for each reading."""
        found = self._passing.get(reading)
        if found is None:
            found = self._passing[reading] = PassingTexts(self, reading)
        return found

    def lengths_of(self, token_ids: Iterable[int]) -> list[int]:
        """The characters of tokens whose texts were asked for."""
        return list(map(self._lengths.get, token_ids, repeat(0)))

    def __missing__(self, token_id: int) -> bytes | None:
        data = self._bytes[token_id]
        if not data and token_id not in self._bytes:
            return b""  # the vocabulary lacks it: not kept, there is no end of such ids
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self.setdefault(token_id, None)
        self._lengths[token_id] = len(text)
        return self.setdefault(token_id, json_text(text))


class PassingTexts(dict[int, "bytes | tuple[bytes, PassingTexts] | None"]):
    """What is shown at WholeTexts by a reading, likewise; None where they have to be read. With it
    the texts of the tokens behind it, unless that are these.
    """

    def __init__(self, whole: WholeTexts, reading: Reading) -> None:
        super().__init__()
        self.reading = reading
        self._whole = whole

    def __missing__(self, token_id: int) -> bytes | tuple[bytes, PassingTexts] | None:
        data = self._whole[token_id]
        if token_id not in self._whole:
            return data
        if data:
            step = self.reading.step(msgspec.json.decode(b'"%b"' % data, type=str))
            if step is None:
                return self.setdefault(token_id, None)
            shown, following = step
            data = json_text(shown)
            if following != self.reading:
                return self.setdefault(token_id, (data, self._whole.passing(following)))
        return self.setdefault(token_id, data)


def json_text(text: str) -> bytes:
    """A text as it stands within a JSON string."""
    return msgspec.json.encode(text)[1:-1]
