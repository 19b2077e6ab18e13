"""What strangers do to each other on a server that is full.

    python bench/fairness.py newcomer                            the default model
    python bench/fairness.py newcomer --shape llama-3.1-8b       dummy weights, see shapes.py
    python bench/fairness.py itl --target-itl-ms 30 --shape llama-3.1-8b --max-running 64

Options that are not known here are the server's.

newcomer: one client's 200 long requests are under way when another, with an API key of its own,
sends short ones. Shown is their time to the first token beside that on an idle server.

itl: 16 streams decode while prompts of 8,000 tokens come, one after the other. Shown is the time
between two tokens of a stream beside the target, and how fast the prompts got on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from itertools import pairwise
from typing import cast
from urllib.parse import urlsplit

from server_process import serving
from serving import served_model
from shapes import add_model_arguments, server_command
from sse_client import Received, post

KEYS = ("many", "few")


class Client:
    """Requests of one API key."""

    def __init__(self, url: str, model: str, key: str, seed: int) -> None:
        self._url = url
        self._model = model
        self._key = key
        self._random = random.Random(seed)

    async def begin(self, prompt_tokens: int, max_tokens: int) -> Stream:
        """A streaming completion of random ids that has exactly so many tokens."""
        body = {
            "model": self._model,
            "prompt": [self._random.randrange(1000, 10_000) for _ in range(prompt_tokens)],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        received = Received(post(self._url, "/v1/completions", body, key=self._key))
        parts = urlsplit(self._url)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: received, parts.hostname, parts.port)
        return Stream(received, cast("asyncio.Transport", transport))

    async def first_token(self, prompt_tokens: int) -> float:
        """Seconds to the first token of a short request, which is read to its end."""
        stream = await self.begin(prompt_tokens, 8)
        await stream.received.ended.wait()
        return stream.received.events()[0].arrived - stream.received.sent


class Stream:
    def __init__(self, received: Received, transport: asyncio.Transport) -> None:
        self.received = received
        self._transport = transport

    def abandon(self) -> None:
        self._transport.abort()

    async def begun(self) -> None:
        """Waits for the first token."""
        while not any(b"data: " in data for _, data in self.received.reads):
            await asyncio.sleep(0.001)  # beside the measurement
            if self.received.ended.is_set():
                self.received.events()  # says why
                return

    def arrivals(self) -> list[float]:
        """When each part of the answer arrived so far."""
        return [arrived for arrived, data in self.received.reads if b"data: " in data]


@contextlib.asynccontextmanager
async def under_way(
    client: Client, count: int, prompt_tokens: int, max_tokens: int
) -> AsyncIterator[list[Stream]]:
    """So many requests at once, abandoned at the end of the block."""
    streams = [await client.begin(prompt_tokens, max_tokens) for _ in range(count)]
    try:
        yield streams
    finally:
        for stream in streams:
            stream.abandon()


async def newcomer(url: str, model: str, args: argparse.Namespace) -> None:
    many, few = (Client(url, model, key, seed) for seed, key in enumerate(KEYS))
    await few.first_token(args.short)  # the server's first request pays for what is made then
    alone = [await few.first_token(args.short) for _ in range(args.repeat)]
    async with under_way(many, args.requests, args.long, args.long_output) as streams:
        await streams[0].begun()
        await asyncio.sleep(args.after)
        crowded = []
        for _ in range(args.repeat):
            crowded.append(await few.first_token(args.short))
            await asyncio.sleep(args.pause)
        begun = sum(bool(stream.arrivals()) for stream in streams)
        ended = sum(stream.received.ended.is_set() for stream in streams)
        if ended == len(streams):
            raise SystemExit("all long requests have ended: --long-output is too small")
        print(f"long requests {begun} of {len(streams)} have begun, {ended} have ended")
    ratio = statistics.median(crowded) / statistics.median(alone)
    print(f"TTFT alone    {shown(alone)}")
    print(f"TTFT beside   {shown(crowded)}")
    print(f"ratio         {ratio:.2f} (wanted 4, aim 2)")


async def inter_token(url: str, model: str, args: argparse.Namespace) -> None:
    decoding, prompts = (Client(url, model, key, seed) for seed, key in enumerate(KEYS))
    async with under_way(decoding, args.streams, 64, args.stream_output) as streams:
        for stream in streams:
            await stream.begun()
        await asyncio.sleep(args.after)
        calm = time.monotonic()
        done = 0
        while time.monotonic() < calm + args.seconds:
            stream = await prompts.begin(args.long_prompt, 1)
            await stream.received.ended.wait()
            stream.received.events()
            done += 1
        end = time.monotonic()
        if any(stream.received.ended.is_set() for stream in streams):
            raise SystemExit("a stream has ended: --stream-output is too small")
        arrivals = [stream.arrivals() for stream in streams]
    gaps = [
        later - earlier
        for stream in arrivals
        for earlier, later in pairwise(stream)
        if calm <= earlier and later <= end
    ]
    before = [b - a for stream in arrivals for a, b in pairwise(stream) if b <= calm]
    print(f"calm          {shown(before)}")
    print(f"with prompts  {shown(gaps)}")
    print(f"prompts       {done * args.long_prompt / (end - calm):.0f} tok/s")
    if args.target_itl_ms:
        ratio = 1000 * percentile(gaps, 99) / args.target_itl_ms
        print(f"p99/target    {ratio:.2f} (wanted 1.2, aim 1.05)")


def percentile(values: Sequence[float], percent: int) -> float:
    return sorted(values)[min(len(values) - 1, len(values) * percent // 100)]


def shown(values: Sequence[float]) -> str:
    middle, last = (1000 * percentile(values, percent) for percent in (50, 99))
    return f"p50 {middle:8.1f} ms, p99 {last:8.1f} ms (n={len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("newcomer", "itl"))
    parser.add_argument("--requests", type=int, default=200, help="the one client's")
    parser.add_argument("--long", type=int, default=512, help="tokens of their prompts")
    parser.add_argument("--long-output", type=int, default=2048, help="tokens of their answers")
    parser.add_argument("--short", type=int, default=64, help="tokens of a newcomer's prompt")
    parser.add_argument("--repeat", type=int, default=15, help="a newcomer's requests")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between them")
    parser.add_argument("--after", type=float, default=10.0, help="seconds before what is measured")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--stream-output", type=int, default=4096)
    parser.add_argument("--long-prompt", type=int, default=8000, help="tokens")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long prompts come")
    parser.add_argument("--target-itl-ms", type=float, default=0.0)
    parser.add_argument("--tp", type=int, default=1)
    add_model_arguments(parser)
    args, options = parser.parse_known_args()  # what isn't known here is the server's
    command = [*server_command(args), *(f"--api-key={key}" for key in KEYS), *options]
    if args.target_itl_ms:
        command.append(f"--target-itl-ms={args.target_itl_ms}")
    with serving(command, deadline=600) as server:
        measure = newcomer if args.what == "newcomer" else inter_token
        asyncio.run(measure(server.url, served_model(server.url, key=KEYS[0]), args))


if __name__ == "__main__":
    main()
