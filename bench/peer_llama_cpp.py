"""Runs a named workload through llama.cpp (package `xllamacpp`) and prints its rates as JSON.

    python bench/peer_llama_cpp.py decode-b16 --model MODEL.gguf --threads N

Run by `compare.py`; the package belongs in a virtual environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import xllamacpp
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

    def complete(index: int) -> dict[str, float]:
        answer = server.handle_completions(
            {
                "prompt": workload.prompts[index],
                "n_predict": workload.max_tokens[index],
                "temperature": workload.temperature,
                "ignore_eos": True,
                "cache_prompt": False,
            }
        )
        body = json.loads(answer) if isinstance(answer, str) else answer
        timings: dict[str, float] = body["timings"]
        if timings["predicted_n"] != workload.max_tokens[index]:
            raise SystemExit(f"asked for {workload.max_tokens[index]} tokens, got {timings}")
        return timings

    runs = []
    with ThreadPoolExecutor(len(workload.prompts)) as executor:
        for _ in range(args.runs):
            start = time.perf_counter()
            timings = list(executor.map(complete, range(len(workload.prompts))))
            seconds = time.perf_counter() - start
            runs.append(
                {
                    "seconds": seconds,
                    "output_rate": workload.output_tokens / seconds,
                    "prompt_rate": workload.prompt_tokens / seconds,
                    "prefill_rate": statistics.median(t["prompt_per_second"] for t in timings),
                    "decode_rate": statistics.median(t["predicted_per_second"] for t in timings),
                }
            )
    print(json.dumps({key: statistics.median(run[key] for run in runs) for key in runs[0]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
