"""GET and DELETE under /v1/responses: what is kept of responses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from minisgl.server import errors
from minisgl.server.http import json_response

if TYPE_CHECKING:
    from minisgl.server.response_store import Owner, StoredResponse
    from minisgl.server.state import ServerState

MAX_PAGE = 100  # items
DEFAULT_PAGE = 20


class _Named(msgspec.Struct):
    """Of an item, what pages of items are cut by."""

    id: str = ""


_raw_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_name_decoder = msgspec.json.Decoder(_Named)


class StoredResponses:
    """What is kept of responses; each client sees its own. The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def get(self, request: Request) -> Response:
        """GET /v1/responses/{id}. ApiError 404."""
        for name in ("stream", "starting_after"):
            if request.query_params.get(name, "false").lower() not in ("", "false", "0"):
                raise errors.unsupported(
                    name, f"'{name}' is not supported here: a response is kept whole."
                )
        return json_response(self._find(request).response)

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/responses/{id}. ApiError 404."""
        response_id = request.path_params["id"]
        self._state.responses.remove(request.scope.get("minisgl.key"), response_id)
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def input_items(self, request: Request) -> Response:
        """GET /v1/responses/{id}/input_items?limit=&order=&after=: a page of the items that the
        response answers, those of the conversation before it among them. ApiError 400, 404.
        """
        limit, newest_first = _limit_of(request), _newest_first(request)
        stored = self._find(request)
        items: list[msgspec.Raw] = []
        async with self._state.decoding:
            for turn in stored.turn.chain():
                found = _raw_decoder.decode(turn.items)
                items += found[: stored.num_inputs] if turn is stored.turn else found
                await asyncio.sleep(0)  # others have their turn between two of them
        if newest_first:
            items.reverse()
        if after := request.query_params.get("after"):
            names = (_name_decoder.decode(item).id for item in items)
            place = next((index for index, name in enumerate(names) if name == after), None)
            if place is None:
                raise errors.bad_request(f"There is no item {after[:200]!r}.", param="after")
            items = items[place + 1 :]
        page = items[:limit]
        ids = [_name_decoder.decode(item).id for item in (page[:1] + page[-1:])]
        return json_response(
            {
                "object": "list",
                "data": page,
                "first_id": ids[0] if ids else None,
                "last_id": ids[-1] if ids else None,
                "has_more": len(items) > limit,
            }
        )

    def _find(self, request: Request) -> StoredResponse:
        owner: Owner = request.scope.get("minisgl.key")
        return self._state.responses.find(owner, request.path_params["id"])


def _limit_of(request: Request) -> int:
    text = request.query_params.get("limit", str(DEFAULT_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_PAGE):
        raise errors.bad_request(
            f"'limit' must be between 1 and {MAX_PAGE}, got {text[:100]!r}.", param="limit"
        )
    return int(text)


def _newest_first(request: Request) -> bool:
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise errors.bad_request(
            f"'order' must be 'asc' or 'desc', got {order[:100]!r}.", param="order"
        )
    return order == "desc"
