"""N concurrent SSE clients against a running server: TTFT, inter-token latency, throughput.

    python bench/serving.py --url http://127.0.0.1:8000 --concurrency 16 --requests 64

TTFT counts from the moment the request is sent, inter-token latency from the arrival of each event.
Tokens are the server's own count (`usage`), so that several tokens in one event are all counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from dataclasses import dataclass, field

import httpx


@dataclass
class RequestTiming:
    ttft: float = 0.0  # seconds
    gaps: list[float] = field(default_factory=list)  # seconds between events
    tokens: int = 0
    error: str = ""


async def run_request(
    client: httpx.AsyncClient, url: str, body: dict[str, object]
) -> RequestTiming:
    timing = RequestTiming()
    start = last = time.perf_counter()
    ended = False
    async with client.stream("POST", f"{url}/v1/completions", json=body) as response:
        if response.status_code != 200:
            timing.error = f"{response.status_code}: {(await response.aread()).decode()[:200]}"
            return timing
        async for line in response.aiter_lines():
            if not line.startswith("data: "):
                continue
            now = time.perf_counter()
            if line == "data: [DONE]":
                ended = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                timing.error = str(event["error"])
                return timing
            if usage := event.get("usage"):
                timing.tokens = usage["completion_tokens"]
            if not event["choices"]:
                continue
            if timing.ttft == 0.0:
                timing.ttft = now - start
            else:
                timing.gaps.append(now - last)
            last = now
    if not ended:
        timing.error = "the stream ended without [DONE]"
    return timing


def percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "too few values"
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49] * 1e3:8.1f}  p90 {cuts[89] * 1e3:8.1f}  p99 {cuts[98] * 1e3:8.1f} ms"


async def run(args: argparse.Namespace) -> int:
    rng = random.Random(0)
    bodies = [
        {
            "model": args.model,
            "prompt": [rng.randint(0, 10000) for _ in range(args.prompt_tokens)],
            "max_tokens": args.max_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(args.requests)
    ]
    limits = httpx.Limits(max_connections=args.concurrency)
    semaphore = asyncio.Semaphore(args.concurrency)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:
        if args.model is None:
            models = (await client.get(f"{args.url}/v1/models")).json()
            for body in bodies:
                body["model"] = models["data"][0]["id"]

        async def one(body: dict[str, object]) -> RequestTiming:
            async with semaphore:
                return await run_request(client, args.url, body)

        start = time.perf_counter()
        timings = await asyncio.gather(*(one(body) for body in bodies))
        seconds = time.perf_counter() - start

    failed = [timing.error for timing in timings if timing.error]
    done = [timing for timing in timings if not timing.error]
    tokens = sum(timing.tokens for timing in done)
    print(f"{len(done)} requests done, {len(failed)} failed, {seconds:.2f} s")
    print(f"output        {tokens / seconds:8.1f} tok/s")
    print(f"TTFT          {percentiles([timing.ttft for timing in done])}")
    print(f"inter-token   {percentiles([gap for timing in done for gap in timing.gaps])}")
    for error in sorted(set(failed)):
        print(f"failed: {error}")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="default: the first that the server names")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--max-tokens", type=int, default=128)
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
