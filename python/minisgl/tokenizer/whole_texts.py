"""The texts of tokens that are whole characters, as JSON has them."""

from __future__ import annotations

import msgspec


class WholeTexts(dict[int, bytes | None]):
    """Token id -> its text as it stands within a JSON string, filled as it is asked; None for a
    token whose bytes aren't whole characters.
    """

    def __init__(self, token_bytes: dict[int, bytes]) -> None:
        """`token_bytes` is filled as it is asked, too, and keeps no id that nobody has."""
        super().__init__()
        self._bytes = token_bytes

    def __missing__(self, token_id: int) -> bytes | None:
        data = self._bytes[token_id]
        if not data and token_id not in self._bytes:
            return b""  # the vocabulary lacks it: not kept, there is no end of such ids
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return self.setdefault(token_id, None)
        return self.setdefault(token_id, json_text(text))


def json_text(text: str) -> bytes:
    """A text as it stands within a JSON string."""
    return msgspec.json.encode(text)[1:-1]
