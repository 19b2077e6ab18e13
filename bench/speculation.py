"""What drafts bring: tokens per second with --speculate over those without, tokens compared.

    python bench/speculation.py [--model MODEL | --shape SHAPE] [--device DEVICE] [--tokens N]

Replay: a seeded answer at temperature 1 was recorded, every other stretch of it replaced by random
tokens, and given to the engine as an earlier answer of the same key. Fresh: an answer at
temperature 1 without anything recorded; batch: --batch of them at once.

The bound of a replay: its tokens over the time of its steps, if the ones with drafts took what a
step of as many requests takes, and the others what one of one request takes; measured before.
"""

from __future__ import annotations

import argparse
import random
import select
import statistics
import time
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from shapes import add_model_arguments, model_options

from minisgl import _native
from minisgl.model_files.source import resolve_model

STRETCH = 32  # tokens


class Run:
    """An engine and the requests that it was given."""

    def __init__(self, model: str, args: argparse.Namespace, load_format: str, speculate: str):
        self.engine = _native.Engine(
            model,
            device=args.device,
            num_threads=args.threads,
            load_format=load_format,
            max_model_len=2048,
            kv_cache_tokens=max(16384, args.batch * (args.tokens + 64)),
            deterministic=args.deterministic,
            speculate=speculate,
        )
        self.engine.start()
        self._next_id = 0

    def answer(self, requests: Sequence[dict[str, Any]]) -> tuple[list[list[int]], float]:
        """Tokens of each request, and the seconds that they took in all."""
        begin = time.perf_counter()
        first = self._next_id
        self._next_id += len(requests)
        for i, request in enumerate(requests):
            self.engine.submit(request | {"id": first + i})
        answers: list[list[int]] = [[] for _ in requests]
        num_left = len(requests)
        while num_left:
            select.select([self.engine.event_fd()], [], [])
            for output in self.engine.take_outputs():
                assert output[2] != "error", output[4]
                answers[output[0] - first] += output[1]
                num_left -= bool(output[2])
        return answers, time.perf_counter() - begin


def corrupted(answer: list[int], rng: random.Random, vocab_size: int, stretch: int) -> list[int]:
    """The answer with every other stretch replaced, the first one included."""
    return [
        rng.randrange(vocab_size) if i // stretch % 2 == 0 else token
        for i, token in enumerate(answer)
    ]


def make_requests(args: argparse.Namespace, vocab_size: int, count: int, seed: str) -> list[Any]:
    rng = random.Random(seed)
    return [
        {
            "prompt": [rng.randrange(vocab_size) for _ in range(32)],
            "max_tokens": args.tokens,
            "ignore_eos": True,
            "temperature": 1.0,
            "seed": rng.getrandbits(32),
        }
        for _ in range(count)
    ]


def measure_costs(plain: Run, args: argparse.Namespace) -> list[tuple[int, float]]:
    """What steps of several rows take, in steps of one row."""
    vocab_size, costs = plain.engine.info["vocab_size"], []
    for rows in (1, 2, 4, 8, 16):
        requests = [make_requests(args, vocab_size, rows, f"{rows} {run}") for run in range(3)]
        costs.append((rows, min(plain.answer(some)[1] for some in requests)))
    print("steps of rows over those of one:", *(f"{r}: {s / costs[0][1]:.2f}" for r, s in costs))
    return [(rows, seconds / costs[0][1]) for rows, seconds in costs]


def cost_of(rows: float, costs: list[tuple[int, float]]) -> float:
    known, values = zip(*costs, strict=True)
    return float(np.interp(rows, known, values))


def compare(
    plain: Run,
    drafting: Run,
    args: argparse.Namespace,
    case: str,
    costs: list[tuple[int, float]],
) -> None:
    """Both engines answer the same requests in turn; prints the ratio of their token rates."""
    vocab_size = plain.engine.info["vocab_size"]
    ratios, rates, at_first = [], [], drafting.engine.stats()
    for run in range(args.runs):
        requests = make_requests(
            args, vocab_size, args.batch if case == "batch" else 1, f"{case} {run}"
        )
        if late := run % 2 == 1 and case != "replay":  # the machine isn't always as quick
            again, drafting_seconds = drafting.answer(requests)
        answers, seconds = plain.answer(requests)
        if case == "replay":
            recorded = corrupted(answers[0], random.Random(run), vocab_size, args.stretch)
            drafting.answer(
                [
                    requests[0]
                    | {
                        "prompt": requests[0]["prompt"] + recorded,
                        "num_resumed": args.tokens,
                        "max_tokens": args.tokens + 2,
                    }
                ]
            )
        if not late:
            again, drafting_seconds = drafting.answer(requests)
        pairs = zip(chain(*answers), chain(*again), strict=True)
        same = sum(before == after for before, after in pairs)
        if same < args.tokens * len(requests):
            print(f"  {same} of {args.tokens * len(requests)} tokens are the same")
        ratios.append(seconds / drafting_seconds)
        rates.append(args.tokens * len(requests) / drafting_seconds)
    now = drafting.engine.stats()
    parts, drafts, held = (
        now[name] - at_first[name] for name in ("num_drafts", "draft_tokens", "accepted_tokens")
    )
    tokens = args.runs * (args.batch if case == "batch" else 1) * args.tokens
    earlier = dict(at_first["accepted_at"])
    places = [number - earlier.get(place, 0) for place, number in now["accepted_at"]]
    while places and not places[-1]:
        places.pop()
    print(
        f"{case}: {statistics.median(rates):.1f} tokens/s, {statistics.median(ratios):.3f} of "
        f"those without ({min(ratios):.3f} to {max(ratios):.3f}); {held} of {drafts} drafts held, "
        f"by place {places}; {tokens / (tokens - held):.2f} tokens a part of a step, "
        f"{drafts / max(parts, 1):.1f} drafts where there were any; finding them took "
        f"{1e6 * (now['draft_seconds'] - at_first['draft_seconds']) / tokens:.1f} us a token",
        flush=True,
    )
    if case == "replay" and parts:
        steps = tokens - held - parts + parts * cost_of(1 + drafts / parts, costs)
        print(f"  the bound: {tokens / steps:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--stretch", type=int, default=STRETCH)
    parser.add_argument("--cases", default="replay,fresh,batch")
    args = parser.parse_args()
    model, load_format = model_options(args)
    path = (
        str(resolve_model(None if model == "default" else model).path)
        if load_format == "auto"
        else model
    )
    plain = Run(path, args, load_format, "none")
    drafting = Run(path, args, load_format, "ngram")
    costs = measure_costs(plain, args)
    for case in args.cases.split(","):
        compare(plain, drafting, args, case, costs)


if __name__ == "__main__":
    main()
