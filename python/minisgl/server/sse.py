"""Server-sent events of a generation: what stays the same is encoded once per stream, what changes
once per event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from minisgl.server.errors import ApiError, from_exception
from minisgl.server.event_pump import PumpedStream
from minisgl.server.generation import Generation
from minisgl.server.http import (
    EVENT_STREAM_HEADERS,
    Exchange,
    Headers,
    end_events,
    start_events,
)
from minisgl.server.schemas import StreamOptions
from minisgl.server.stream_shape import Events

DONE = b"data: [DONE]\n\n"
encode_json = msgspec.json.Encoder().encode


class EventFrame:
    """The part of each event around the choice: id, object, created, model, and usage where it was
    asked for.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        options: StreamOptions | None,
        generation: Generation,
    ) -> None:
        self._generation = generation
        self._usage = options is not None and bool(options.include_usage)
        self._continuous = options is not None and bool(options.continuous_usage_stats)
        self._head = b"data: " + encode_json(fields)[:-1] + b',"choices":['
        # What stands before a choice's index, and after a choice.
        self.head = self._head + b'{"index":'
        self._tail = b'}],"usage":null}\n\n' if self._usage else b"}]}\n\n"

    @property
    def changes(self) -> bool:
        """Whether the tail differs from event to event."""
        return self._continuous

    @property
    def tail(self) -> bytes:
        """What stands after a choice in each event."""
        if not self._continuous:
            return self._tail
        return b'}],"usage":' + encode_json(usage(self._generation)) + b"}\n\n"

    def last(self) -> bytes:
        """After the choices' last events."""
        if not self._usage:
            return DONE
        return self._head + b'],"usage":' + encode_json(usage(self._generation)) + b"}\n\n" + DONE


def usage(generation: Generation) -> dict[str, Any]:
    """OpenAI's usage, of the whole request so far. Each prompt counts once, whatever n is."""
    prompt, completion = generation.num_prompt_tokens, generation.num_generated_tokens
    shown: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": generation.num_cached_tokens},
    }
    details = {}
    if (reasoning := generation.num_reasoning_tokens) is not None:
        details["reasoning_tokens"] = reasoning
    tried, held = generation.drafts
    if tried:
        details["accepted_prediction_tokens"] = held
        details["rejected_prediction_tokens"] = tried - held
    if details:
        shown["completion_tokens_details"] = details
    return shown


async def stream_events(
    exchange: Exchange,
    generation: Generation,
    events: Events,
    failed: Callable[[ApiError], bytes] | None = None,
    headers: Headers = EVENT_STREAM_HEADERS,
) -> None:
    """Sends a generation as it grows: one write for all that is ready.

    The response begins with the first output, so a request that the engine refuses still gets its
    status. After that a failure is an event: what `failed` makes of it, where an API has an end for
    that, or else an error, and the body is left without its end: a clean one would read as success.
    """
    event = events.event
    send_now = exchange.send_now if generation.text_is_here else None
    try:
        while generation.num_live:
            if send_now is None or not exchange.response_started:
                data = b"".join([event(delta) for delta in await generation.ready()])
            else:
                data = await PumpedStream(exchange.pump, generation, events, send_now).run()
            if not generation.num_live:
                data += events.last()
            if not data:
                continue  # all of it is held: part of a character, or of a stop string
            if not exchange.response_started:
                await start_events(exchange.send, headers)
            await exchange.send_events(data)
    except Exception as error:
        if not exchange.response_started:
            raise
        answer = from_exception(error, exchange.request_id)
        await exchange.send_events(answer.event() if failed is None else failed(answer))
        if failed is not None:
            await end_events(exchange.send)
    else:
        await end_events(exchange.send)
