"""Ours against llama.cpp, or against another tree of ours: the same model, threads and prompts, one
process after the other in turn.

    python bench/compare.py --peer-python PEER/bin/python --model MODEL.gguf [WORKLOAD ...]
    python bench/compare.py --peer-tree TREE [--shape qwen3-0.6b --device cuda] [WORKLOAD ...]

PEER is a virtual environment with the package `xllamacpp`. TREE is another checkout, in which the
native module was built as below: the same Python runs its bench/offline.py with its package.
Prints both engines' rates in tokens a second and the ratio, each the median over the rounds. So
decoding without grammars stands beside a build without them:

    git worktree add TREE 82d978f^ && (cd TREE && python setup.py build_ext --inplace)
    python bench/compare.py --peer-tree TREE --rounds 7 decode-b16
    python bench/compare.py --peer-tree TREE --rounds 7 --shape qwen3-0.6b --device cuda decode-b64
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from shapes import add_model_arguments

HERE = Path(__file__).resolve().parent


def run(command: Sequence[str], tree: Path | None = None) -> dict[str, float]:
    """The rates that a benchmark prints as its last line; with a tree, of the package there."""
    environment = {**os.environ, **({"PYTHONPATH": str(tree / "python")} if tree else {})}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    rates: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return rates


def run_tree(tree: Path, arguments: Sequence[str]) -> dict[str, float]:
    """The rates of a checkout of ours."""
    return run([sys.executable, str(tree / "bench" / "offline.py"), *arguments, "--json"], tree)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "workloads", nargs="*", default=["decode-b1", "decode-b16", "prefill-1x512"]
    )
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--peer-python")
    peer.add_argument("--peer-tree", type=Path)
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", help="with --peer-tree; default: auto")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.peer_python and (args.device or not args.model):
        parser.error("llama.cpp (--peer-python) needs --model and runs on the CPU")

    name = "llama.cpp" if args.peer_python else args.peer_tree.resolve().name
    options = [f"--threads={args.threads}", "--runs=1"]
    for option in ("model", "shape", "device"):
        if value := getattr(args, option):
            options.append(f"--{option}={value}")
    for workload in args.workloads:
        ours: list[dict[str, float]] = []
        peers: list[dict[str, float]] = []
        for number in range(args.rounds):
            for side in (ours, peers) if number % 2 else (peers, ours):
                arguments = [workload, *options]
                if side is ours:
                    side.append(run_tree(HERE.parent, arguments))
                elif args.peer_tree:
                    side.append(run_tree(args.peer_tree.resolve(), arguments))
                else:
                    script = str(HERE / "peer_llama_cpp.py")
                    side.append(run([args.peer_python, script, *arguments]))
        for rate in ours[0]:
            ratios = sorted(a[rate] / b[rate] for a, b in zip(ours, peers, strict=True))
            us, them = (statistics.median(rates[rate] for rates in side) for side in (ours, peers))
            print(
                f"{workload} {rate}: minisgl {us:.1f} tok/s, {name} {them:.1f} tok/s, ratio "
                f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
