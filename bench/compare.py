"""Ours against llama.cpp: the same file, threads and prompts, one process after the other in turn.

    python bench/compare.py --peer-python PEER/bin/python --model MODEL.gguf [WORKLOAD ...]

PEER is a virtual environment with the package `xllamacpp`. Prints both engines' rates in tokens a
second and the ratio, each the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run(command: list[str]) -> dict[str, float]:
    """The rates that a benchmark prints as its last line."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rates: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return rates


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "workloads", nargs="*", default=["decode-b1", "decode-b16", "prefill-1x512"]
    )
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    for workload in args.workloads:
        common = [workload, "--model", args.model, "--threads", str(args.threads), "--runs", "1"]
        ours, peer = [], []
        for _ in range(args.rounds):
            peer.append(run([args.peer_python, str(HERE / "peer_llama_cpp.py"), *common]))
            ours.append(run([sys.executable, str(HERE / "offline.py"), *common, "--json"]))
        for name in ours[0]:
            ratio = statistics.median(a[name] / b[name] for a, b in zip(ours, peer, strict=True))
            us, them = (statistics.median(rates[name] for rates in side) for side in (ours, peer))
            print(
                f"{workload} {name}: minisgl {us:.1f} tok/s, llama.cpp {them:.1f} tok/s, "
                f"ratio {ratio:.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
