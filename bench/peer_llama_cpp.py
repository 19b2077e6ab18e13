"""Runs a named workload through llama.cpp (package `xllamacpp`) and prints its rates as JSON.

    python bench/peer_llama_cpp.py decode-b16 --model MODEL.gguf --threads N

`compare.py` runs it; the package belongs in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import xllamacpp
from measure import measure
from workloads import Workload, make_workload


def start_server(model: str, threads: int, workload: Workload) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.n_parallel = len(workload.prompts)
    longest = max(
        len(prompt) + count
        for prompt, count in zip(workload.prompts, workload.max_tokens, strict=True)
    )
    params.n_ctx = len(workload.prompts) * (longest + 16)
    params.cache_prompt = False
    params.verbosity = 0
    return xllamacpp.Server(params)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    workload = make_workload(args.workload)
    server = start_server(args.model, args.threads, workload)

    def complete_one(prompt: list[int], count: int) -> None:
        answer = server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": count,
                "temperature": workload.temperature,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        body = json.loads(answer) if isinstance(answer, str) else answer
        if body["timings"]["predicted_n"] != count:
            raise SystemExit(f"asked for {count} tokens, got {body['timings']}")

    with ThreadPoolExecutor(len(workload.prompts)) as executor:

        def complete(counts: Sequence[int]) -> None:
            list(executor.map(complete_one, workload.prompts, counts))

        print(json.dumps(measure(workload, complete, args.runs)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
