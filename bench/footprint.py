"""Time from `minisgl-serve` to ready, and memory before and after 16 clients fill the KV cache.

    python bench/footprint.py [--model MODEL] [--starts 5]

Beside the memory stands its floor: the weights in their format and the keys and values kept.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys

from server_process import RunningServer, serving
from serving import run_http, served_model
from workloads import Workload

from minisgl import LLM

KV_TOKENS = 16 * 1024
CLIENTS = 16
OUTPUT = 64
PROMPT = KV_TOKENS // CLIENTS - OUTPUT - 16  # a page of each sequence is left free


def show_memory(server: RunningServer, when: str) -> None:
    memory = server.memory()
    parts = ", ".join(
        f"{name} {rss / 1e6:.0f} (PSS {pss / 1e6:.0f})" for name, (rss, pss) in memory.items()
    )
    rss, pss = (sum(values) / 1e6 for values in zip(*memory.values(), strict=True))
    print(f"{when}: {rss:.0f} MB resident, PSS {pss:.0f} MB ({parts})")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", help="default: the default model")
    parser.add_argument("--starts", type=int, default=5)
    args = parser.parse_args()

    command = [sys.executable, "-m", "minisgl", "--kv-cache-tokens", str(KV_TOKENS)]
    command += [f"--model={args.model}"] if args.model else []
    starts = []
    for _ in range(args.starts - 1):
        with serving(command) as server:
            starts.append(server.seconds_to_ready)
    rng = random.Random(0)
    prompts = [[rng.randint(0, 10000) for _ in range(PROMPT)] for _ in range(CLIENTS)]
    workload = Workload("fill", prompts, [OUTPUT] * CLIENTS, 0.0)
    with serving(command) as server:
        starts.append(server.seconds_to_ready)
        show_memory(server, "ready")
        timings = run_http(server.url, served_model(server.url), workload)
        if timings.failed:
            raise SystemExit(timings.failed[0])
        show_memory(server, f"after {CLIENTS} requests of {PROMPT + OUTPUT} tokens")
    with LLM(args.model, kv_cache_tokens=KV_TOKENS, show_progress=False) as llm:
        weights, kv = llm.info.weight_bytes / 1e6, llm.info.kv_cache_bytes / 1e6
    print(f"floor: weights {weights:.0f} MB, KV cache of {KV_TOKENS} tokens {kv:.0f} MB")
    print("wanted 600 MB, aim 350 MB")
    shown = ", ".join(f"{seconds:.2f}" for seconds in starts)
    print(f"to ready: median {statistics.median(starts):.2f} s ({shown}; wanted 6 s, aim 3 s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
