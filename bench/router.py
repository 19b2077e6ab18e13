"""What a request costs the router in the server's loop.

    python bench/router.py [--replicas 8] [--prefixes 100000] [--requests 5000]

The router was sent so many prompts of 2,048 tokens and its replicas' caches have room for all. Then
requests come, of which 0.8 begin like one of them: choose, placed, progressed once per request for
its first token, finished with 128 more tokens. Microseconds of this process's own time per request,
beside what reading and hashing the same prompts in Python alone takes, in blocks as the router's.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections import deque

from minisgl._native import SentPrefixes
from minisgl.engine.router import Ask, Router

PROMPT, ANSWER = 2048, 128
RUNNING = 64  # requests at once


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument("--prefixes", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=5000)
    args = parser.parse_args()

    rng = random.Random(0)
    text = [rng.randrange(128_000) for _ in range(2**20)]

    def prompt(number: int) -> list[int]:
        at = random.Random(number).randrange(len(text) - PROMPT)
        return [number, *text[at + 1 : at + PROMPT]]

    router = Router()
    for replica in range(args.replicas):
        router.add(replica, cache_tokens=2 * PROMPT * args.prefixes // args.replicas)
    for number in range(args.prefixes):
        tokens = prompt(number)
        router.placed(number, router.choose(Ask(number, tokens)).replica, tokens)
        router.finished(number, tokens)
    cached = sum(router.cached_tokens(replica) for replica in router.replicas)

    asks = []
    for number in range(args.prefixes, args.prefixes + args.requests):
        known = rng.randrange(args.prefixes) if rng.random() < 0.8 else number
        asks.append(Ask(number, prompt(known)[: PROMPT - 64] + text[:64]))
    answer = text[-ANSWER:]
    gc.collect()
    gc.freeze()
    costs, hits, running = [], 0, deque[Ask]()
    for ask in asks:
        sum(ask.tokens)  # who made the prompt just now has it in the processor's caches
        began = time.process_time_ns()
        decision = router.choose(ask)
        router.placed(ask.id, decision.replica, ask.tokens)
        router.progressed(ask.id, 1)
        took = time.process_time_ns() - began
        hits += decision.matched_tokens > 0
        running.append(ask)
        if len(running) > RUNNING:
            ended = running.popleft()
            whole = [*ended.tokens, *answer]
            began = time.process_time_ns()
            router.finished(ended.id, whole)
            took += time.process_time_ns() - began
        costs.append(took / 1e3)
    began = time.process_time_ns()
    for ask in asks:
        key = 0
        for at in range(0, PROMPT, SentPrefixes.BLOCK):
            key = hash((key, tuple(ask.tokens[at : at + SentPrefixes.BLOCK])))
    hashing = (time.process_time_ns() - began) / 1e3 / len(asks)
    costs.sort()
    print(
        f"{args.replicas} replicas, {cached} tokens of {args.prefixes} prompts cached, "
        f"{hits} of {len(asks)} requests begin like one: {statistics.mean(costs):.1f} us "
        f"(p50 {costs[len(costs) // 2]:.1f}, p99 {costs[99 * len(costs) // 100]:.1f}); "
        f"hashing in Python alone {hashing:.1f} us"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
