"""Responses that are kept for later requests, in memory: within a number of bytes, each for the
client whose it is, until there is no room, it is deleted or the server ends.

A conversation is a chain of turns, each with what one request added to it and what was answered.
Responses share the turns before theirs, and a turn is kept, and counted once, as long as a response
that is stored needs it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from minisgl.server.errors import ApiError

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
        self.num_bytes = 0
        self._max_bytes = max_bytes
        self._responses: OrderedDict[tuple[Owner, str], StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, owner: Owner, response_id: str, stored: StoredResponse) -> None:
        """Keeps a response, unless it is too large for that with its conversation."""
        if stored.num_bytes + stored.turn.all_bytes > self._max_bytes:
            return
        self._responses[owner, response_id] = stored
        self.num_bytes += stored.num_bytes
        self._hold(stored.turn)
        while self.num_bytes > self._max_bytes or len(self._responses) > MAX_RESPONSES:
            self._forget(self._responses.popitem(last=False)[1])

    def find(self, owner: Owner, response_id: str, *, param: str | None = None) -> StoredResponse:
        """A response of an owner's. ApiError 404; `param`: the field that names it."""
        stored = self._responses.get((owner, response_id))
        if stored is None:
            raise self._not_found(response_id, param)
        self._responses.move_to_end((owner, response_id))
        return stored

    def remove(self, owner: Owner, response_id: str) -> None:
        """Deletes a response of an owner's; conversations that went on from it go on. ApiError
        404.
        """
        stored = self._responses.pop((owner, response_id), None)
        if stored is None:
            raise self._not_found(response_id, None)
        self._forget(stored)

    def _forget(self, stored: StoredResponse) -> None:
        self.num_bytes -= stored.num_bytes
        turn: Turn | None = stored.turn
        while turn is not None:
            turn.num_holders -= 1
            if turn.num_holders:
                return
            self.num_bytes -= turn.num_bytes
            turn = turn.parent

    def _hold(self, last: Turn) -> None:
        turn: Turn | None = last
        while turn is not None:
            turn.num_holders += 1
            if turn.num_holders > 1:
                return
            self.num_bytes += turn.num_bytes
            turn = turn.parent

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
