"""Responses that are kept for later requests, in memory: within a number of bytes, each for the
client whose it is, until there is no room, it is deleted or the server ends.

A conversation is a chain of turns, each with what one request added to it and what was answered.
Responses share the turns before theirs, and a turn is kept, and counted once, as long as a response
that is stored needs it.
"""

from __future__ import annotations

from dataclasses import dataclass

from minisgl.server.errors import ApiError
from minisgl.text.recently_used import RecentlyUsed

MAX_RESPONSES = 65536
NUM_OVERHEAD_BYTES = 1000  # of a response that is kept, beside its JSON texts

Owner = int | None  # the number of the client's API key; None where none is asked for


class Turn:
    """A request's input items and its answer's output items, after the turns before it."""

    def __init__(self, parent: Turn | None, items: bytes) -> None:
        """`items`: JSON, a list."""
        self.parent = parent
        self.items = items
        self.num_bytes = len(items) + NUM_OVERHEAD_BYTES
        self.all_bytes: int = self.num_bytes + (parent.all_bytes if parent is not None else 0)
        self.num_holders = 0  # responses that are stored, and turns after it that are held

    def chain(self) -> list[Turn]:
        """The turns up to this one, the oldest first."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]


@dataclass(frozen=True)
class StoredResponse:
    """A response as clients see it, and the conversation that ends with it."""

    response: bytes  # JSON
    turn: Turn
    num_inputs: int  # how many of the turn's items are the request's own

    @property
    def num_bytes(self) -> int:
        """Memory that it takes beside its turns, about."""
        return len(self.response) + NUM_OVERHEAD_BYTES


class ResponseStore:
    """Responses by owner and id. Those that were used longest ago go first."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: memory that they take at most, about; 0: none are kept."""
        self._max_bytes = max_bytes
        self._responses = RecentlyUsed[tuple[Owner, str], StoredResponse](
            max_bytes, MAX_RESPONSES, _hold, _let_go
        )

    @property
    def num_bytes(self) -> int:
        """Memory that they take, about."""
        return self._responses.num_bytes

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, owner: Owner, response_id: str, stored: StoredResponse) -> None:
        """Keeps a response, unless it is too large for that with its conversation."""
        if stored.num_bytes + stored.turn.all_bytes > self._max_bytes:
            return
        self._responses.add((owner, response_id), stored)

    def find(self, owner: Owner, response_id: str, *, param: str | None = None) -> StoredResponse:
        """A response of an owner's. ApiError 404; `param`: the field that names it."""
        stored = self._responses.get((owner, response_id))
        if stored is None:
            raise self._not_found(response_id, param)
        return stored

    def remove(self, owner: Owner, response_id: str) -> None:
        """Deletes a response of an owner's; conversations that went on from it go on. ApiError
        404.
        """
        if self._responses.remove((owner, response_id)) is None:
            raise self._not_found(response_id, None)

    def _not_found(self, response_id: str, param: str | None) -> ApiError:
        shown = response_id if len(response_id) <= 200 else response_id[:200] + "..."
        reason = (
            "it was deleted, was made with 'store': false or another API key, had to make room "
            f"(--response-store-bytes is {self._max_bytes}), or the server has restarted since"
        )
        if not self._max_bytes:
            reason = (
                "this server keeps none (--response-store-bytes is 0); send the whole "
                "conversation as 'input'"
            )
        return ApiError(
            404,
            f"The response {shown!r} is not stored: {reason}.",
            param=param,
            code="previous_response_not_found" if param else "response_not_found",
        )


def _hold(stored: StoredResponse) -> int:
    """The response is stored, and holds its turns. Returns the bytes that this takes."""
    num_bytes = stored.num_bytes
    turn: Turn | None = stored.turn
    while turn is not None:
        turn.num_holders += 1
        if turn.num_holders > 1:
            break
        num_bytes += turn.num_bytes
        turn = turn.parent
    return num_bytes


def _let_go(stored: StoredResponse) -> int:
    """The response isn't stored any more. Returns the bytes that this gives back."""
    num_bytes = stored.num_bytes
    turn: Turn | None = stored.turn
    while turn is not None:
        turn.num_holders -= 1
        if turn.num_holders:
            break
        num_bytes += turn.num_bytes
        turn = turn.parent
    return num_bytes
