"""What a client gets of a stream, token by token, held against what it was to get."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.python.launch.servers import Stream


class CountedStream(Stream):
    """A completion whose events carry token ids, and when each of them came."""

    def __init__(self, port: int, prompt: list[int], max_tokens: int, **fields: Any) -> None:
        self.began = time.monotonic()
        more = {"return_token_ids": True, "stream_options": {"include_usage": True}}
        super().__init__(port, prompt, max_tokens, ignore_eos=True, **more, **fields)

    @property
    def has_tokens(self) -> bool:
        return bool(self.arrivals)


@dataclass(frozen=True)
class Receipt:
    """What one client has received in all."""

    tokens: tuple[int, ...]
    text: str
    finish: str
    counted: int  # by the server, in the usage
    fault: str = ""  # what is wrong with the answer as such


def receipt(stream: CountedStream) -> Receipt:
    """Of a stream; waits for its end."""
    stream.join()
    events = stream.events  # a text may have any character, some of which end a line
    fault = ""
    if stream.status != 200:
        fault = f"status {stream.status}: {events[:1]}"
    elif stream.broken or not events or events[-1] != "data: [DONE]":
        fault = f"cut after {len(events)} events: {events[-1:]}"
    tokens: list[int] = []
    text, finish, counted = "", "", 0
    for event in events if stream.status == 200 else ():
        if event == "data: [DONE]":
            continue
        chunk = json.loads(event.removeprefix("data: "))
        if "error" in chunk:
            fault = chunk["error"]["message"]
            continue
        if chunk.get("usage"):
            counted = chunk["usage"]["completion_tokens"]
        for choice in chunk["choices"]:
            tokens += choice["token_ids"] or ()
            text += choice["text"]
            finish = choice["finish_reason"] or finish
    return Receipt(tuple(tokens), text, finish, counted, fault)


@dataclass
class Account:
    """All that clients saw while something went wrong."""

    streams: int = 0
    lost: int = 0  # tokens that didn't come
    repeated: int = 0  # tokens that came beyond those
    wrong: int = 0  # streams whose tokens, text, end or usage are others than undisturbed
    faults: list[str] = field(default_factory=list)
    longest_gap: float = 0.0  # seconds without an event, of all streams

    @property
    def is_exact(self) -> bool:
        return not (self.lost or self.repeated or self.wrong or self.faults)

    def add(self, streams: Sequence[CountedStream], expected: Sequence[Receipt]) -> None:
        """Waits until these have ended, and holds them against what they are undisturbed."""
        for stream, right in zip(streams, expected, strict=True):
            got = receipt(stream)
            self.streams += 1
            missing = len(right.tokens) - len(got.tokens)
            self.lost += max(0, missing)
            self.repeated += max(0, -missing)
            self.wrong += got != right
            if got.fault:
                self.faults.append(got.fault)
            times = [stream.began, *stream.arrivals]
            gaps = [after - before for before, after in itertools.pairwise(times)]
            self.longest_gap = max(self.longest_gap, *gaps, 0.0)
