"""Items of earlier requests that a request refers to: they have the limits of its body."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from minisgl.server import errors
from minisgl.server.errors import ApiError
from minisgl.server.response_schemas import Item
from minisgl.server.schemas import MAX_MESSAGES

if TYPE_CHECKING:
    from minisgl.server.http import Exchange
    from minisgl.server.response_store import Turn
    from minisgl.server.state import ServerState

_decoder = msgspec.json.Decoder(list[Item])


class KeptItems:
    """Reads the items of turns for one request. Their bytes count as its body's do."""

    def __init__(self, state: ServerState, exchange: Exchange) -> None:
        self._state = state
        self._exchange = exchange
        self._num_bytes = 0
        self._by_response: dict[str, dict[str | None, Item]] = {}

    async def of_turns(self, turns: Iterable[Turn], param: str) -> list[Item]:
        """The items of turns. ApiError 400 about the field `param` where they are too many, 503."""
        items: list[Item] = []
        for turn in turns:
            items += await self._read(turn, param)
        if len(items) > MAX_MESSAGES:
            raise errors.bad_request(
                f"'{param}' stands for too many items ({len(items)}; limit {MAX_MESSAGES}).",
                param=param,
            )
        return items

    async def resolve(self, items: list[Item]) -> list[Item]:
        """The items, with stored ones in the place of those that name one by its id. ApiError 400,
        404, 503.
        """
        return [
            await self._named(item, f"input[{index}].id") if item.type == "item_reference" else item
            for index, item in enumerate(items)
        ]

    async def _named(self, reference: Item, place: str) -> Item:
        if reference.id is None:
            raise errors.missing(place)
        # An item's id has that of its response: msg_HEX_0.
        response_hex = reference.id.partition("_")[2].partition("_")[0]
        response_id = f"resp_{response_hex}"
        items = self._by_response.get(response_id)
        if items is None and response_hex:
            stored = self._state.responses.find(self._exchange.api_key, response_id, param=place)
            items = {item.id: item for item in await self._read(stored.turn, place)}
            self._by_response[response_id] = items
        if (item := (items or {}).get(reference.id)) is None:
            raise ApiError(
                404,
                f"The item {reference.id[:200]!r} is not stored.",
                param=place,
                code="item_not_found",
            )
        return item

    async def _read(self, turn: Turn, param: str) -> list[Item]:
        self._num_bytes += turn.num_bytes
        limit = self._state.args.max_body_bytes
        if self._num_bytes > limit:
            raise errors.bad_request(
                f"What '{param}' refers to is too large (at least {self._num_bytes} bytes; limit "
                f"{limit}, as for one request, --max-body-bytes).",
                param=param,
            )
        if self._exchange.body_hold is not None:
            self._exchange.body_hold.grow(turn.num_bytes)
        async with self._state.decoding:
            await asyncio.sleep(0)  # others have their turn between two of them
            return _decoder.decode(turn.items)
