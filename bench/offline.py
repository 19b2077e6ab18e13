"""Runs a named workload through `LLM`, the engine without HTTP, and prints its token rates.

    python bench/offline.py decode-b16 [--model MODEL] [--threads N] [--json]
    python bench/offline.py offline-256 --shape qwen3-0.6b          dummy weights, see shapes.py

Decoding stands beside its ceiling: the weight bytes that a step must read over the read bandwidth
measured in the same process. (A processor whose cache holds the weights can pass it.)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from measure import measure
from shapes import add_model_arguments, model_options
from workloads import make_workload

from minisgl import LLM, SamplingParams, _native


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="decode-bN, decode-bNxL, prefill-PxL or offline-256")
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kv-dtype", default="auto")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--comm", default="auto")
    parser.add_argument("--expert-parallel", action="store_true", help="with --tp: whole experts")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--prefix-cache", action="store_true", help="on, though no run finds anything there"
    )
    parser.add_argument(
        "--warm",
        action="store_true",
        help="prompts come again and are found in the prefix cache: decoding behind long ones",
    )
    parser.add_argument("--json", action="store_true", help="print the rates as JSON only")
    args = parser.parse_args()

    workload = make_workload(args.workload)
    longest = max(
        len(prompt) + count
        for prompt, count in zip(workload.prompts, workload.max_tokens, strict=True)
    )
    model, load_format = model_options(args)
    with LLM(
        model,
        load_format=load_format,
        device=args.device,
        kv_dtype=args.kv_dtype,
        quantize=args.quantize,
        tp=args.tp,
        comm=args.comm,
        expert_parallel=args.expert_parallel,
        deterministic=args.deterministic,
        num_threads=args.threads,
        max_model_len=longest,
        disable_prefix_cache=not (args.prefix_cache or args.warm),
        show_progress=not args.json,
    ) as llm:
        num_calls = 0

        def complete(counts: Sequence[int]) -> None:
            params = [
                SamplingParams(
                    max_tokens=count, ignore_eos=True, temperature=workload.temperature, seed=i
                )
                for i, count in enumerate(counts)
            ]
            nonlocal num_calls
            if not args.warm:
                num_calls += 1  # other tokens each time, or the cache would have them
            prompts = [[token + num_calls for token in prompt] for prompt in workload.prompts]
            results = llm.generate(prompts, params, use_tqdm=False)
            assert [len(r.outputs[0].token_ids) for r in results] == list(counts)

        info = llm.info
        bandwidth = _native.measure_read_bandwidth(info.num_threads, args.device)
        if args.warm:
            complete([1] * len(workload.prompts))
        rates = measure(workload, complete, args.runs)
    if args.json:
        print(json.dumps(rates))
        return 0
    print(f"{workload.name}: {workload.prompt_tokens} tokens in, {workload.output_tokens} out")
    shown = ", ".join(f"{name} {rate:.1f} tok/s" for name, rate in rates.items())
    print(f"{shown} (median of {args.runs})")
    ceiling = len(workload.prompts) * bandwidth / info.weight_bytes
    print(
        f"read bandwidth {bandwidth / 1e9:.2f} GB/s, weights of a rank "
        f"{info.weight_bytes / 1e6:.1f} MB: "
        f"a batch of {len(workload.prompts)} that only reads weights would make {ceiling:.0f} tok/s"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
