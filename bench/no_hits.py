"""What the prefix cache costs where it finds nothing: two engines side by side, one with it and one
without, take turns at the same passes of prompts that nobody has sent before.

    python bench/no_hits.py [--passes 12]

Each pass is counted in processor time (user and system, all threads) and page faults of its
process, as neighbours in time share the machine's noise. The first passes, until every page of the
cache has been written once, stand apart: an engine without a prefix cache writes the same few pages
again, and leaves the others to the system.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass

from shapes import add_model_arguments, model_options

from minisgl import LLM, SamplingParams


@dataclass(frozen=True)
class Cost:
    """What one pass took."""

    cpu_seconds: float
    seconds: float
    faults: int
    cached: int  # prompt tokens that were found computed: 0 wanted


def prompts_of(number: int, args: argparse.Namespace) -> list[list[int]]:
    rng = random.Random(number)
    return [[rng.randint(0, 10000) for _ in range(args.length)] for _ in range(args.prompts)]


def work(args: argparse.Namespace) -> int:
    """An engine that makes a pass per line of its standard input, and prints what it took."""
    model, load_format = model_options(args)
    params = SamplingParams(max_tokens=args.max_tokens, temperature=0, ignore_eos=True)
    with LLM(
        model,
        load_format=load_format,
        num_threads=args.threads,
        kv_cache_tokens=args.cache_tokens,
        disable_prefix_cache=args.work == "without",
        show_progress=False,
    ) as llm:
        print(flush=True)
        for line in sys.stdin:
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            results = llm.generate(prompts_of(int(line), args), params, use_tqdm=False)
            seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
            cost = Cost(
                after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
                seconds,
                after.ru_minflt - before.ru_minflt,
                sum(result.num_cached_tokens for result in results),
            )
            print(json.dumps(vars(cost)), flush=True)
    return 0


class Worker:
    """A process that work() runs in."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--work", kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._line()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("an engine ended")
        return line

    def run(self, number: int) -> Cost:
        """One pass."""
        assert self._process.stdin
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        return Cost(**json.loads(self._line()))

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def show(title: str, pairs: list[tuple[Cost, Cost]]) -> None:
    if not pairs:
        return
    print(title)
    for name in ("cpu_seconds", "seconds"):
        ratios = sorted(getattr(off, name) / getattr(on, name) for on, off in pairs)
        with_it, without = (
            statistics.median(getattr(pair[side], name) for pair in pairs) for side in (0, 1)
        )
        print(
            f"  {name}: with {with_it:.3f}, without {without:.3f}; throughput with over without "
            f"{statistics.median(ratios):.4f} ({ratios[0]:.3f} to {ratios[-1]:.3f}), "
            f"{len(ratios)} pairs"
        )
    faults = [statistics.median(pair[side].faults for pair in pairs) for side in (0, 1)]
    print(f"  page faults per pass: with {faults[0]:.0f}, without {faults[1]:.0f}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--cache-tokens", type=int, default=8192)
    parser.add_argument("--passes", type=int, default=12, help="after the cache is full")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args)

    num_first = -(-args.cache_tokens // (args.prompts * (args.length + args.max_tokens)))
    workers = {kind: Worker(kind) for kind in ("with", "without")}
    pairs = []
    for number in range(num_first + args.passes):
        order = ["with", "without"] if number % 2 else ["without", "with"]
        costs = {kind: workers[kind].run(number) for kind in order}
        if costs["with"].cached:
            raise SystemExit("prompts were found in the cache: this measures something else")
        pairs.append((costs["with"], costs["without"]))
    for worker in workers.values():
        worker.close()
    show(f"the first {num_first} passes, while the cache fills:", pairs[:num_first])
    show("after that, each page given up for the next:", pairs[num_first:])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
