"""Runs a named workload through `LLM`, the engine without HTTP, and prints its token rates.

    python bench/offline.py decode-b16 [--model MODEL] [--threads N]

Each figure stands beside its ceiling: the weight bytes that a decode step must read over the read
bandwidth measured in the same process.
"""

from __future__ import annotations

import argparse
import time

from workloads import make_workload

from minisgl import LLM, SamplingParams, _native


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="decode-bN, prefill-PxL or offline-256")
    parser.add_argument("--model")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    workload = make_workload(args.workload)
    longest = max(
        len(prompt) + count
        for prompt, count in zip(workload.prompts, workload.max_tokens, strict=True)
    )
    params = [
        SamplingParams(max_tokens=count, ignore_eos=True, temperature=workload.temperature, seed=i)
        for i, count in enumerate(workload.max_tokens)
    ]
    with LLM(args.model, num_threads=args.threads, max_seq_len=longest) as llm:
        info = llm.info
        bandwidth = _native.measure_read_bandwidth(info.num_threads)
        rates = []
        for _ in range(args.runs):
            start = time.perf_counter()
            results = llm.generate(workload.prompts, params, use_tqdm=False)
            seconds = time.perf_counter() - start
            assert sum(len(r.outputs[0].token_ids) for r in results) == workload.output_tokens
            rates.append((workload.prompt_tokens / seconds, workload.output_tokens / seconds))
        prompt_rate, output_rate = sorted(rates)[len(rates) // 2]
    ceiling = len(workload.prompts) * bandwidth / info.weight_bytes
    print(f"{workload.name}: {workload.prompt_tokens} tokens in, {workload.output_tokens} out")
    print(f"output {output_rate:.1f} tok/s, prompt {prompt_rate:.1f} tok/s (median of {args.runs})")
    print(
        f"read bandwidth {bandwidth / 1e9:.2f} GB/s, weights {info.weight_bytes / 1e6:.1f} MB: "
        f"a batch of {len(workload.prompts)} that only reads weights would make {ceiling:.0f} tok/s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
