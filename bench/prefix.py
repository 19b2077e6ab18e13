"""Times requests whose prompts share a prefix that is computed already, through `LLM`.

    python bench/prefix.py [--model MODEL] [--threads N]          the default model
    python bench/prefix.py --shape llama-3.1-8b                   dummy weights, see shapes.py

Prompts have --prompt-tokens ids, of which the first are the same for all and cached, each number of
--cached in turn; every prompt has its own rest, and every round a prefix of its own. Beside each
time stand its floors, taken in the same round: the prefill of as many tokens as weren't cached
alone, and what a whole prefill takes longer than that of the cached part (the same rows, attending
to all before them). Medians of --rounds.

    python bench/prefix.py evicted --kv-host-bytes 4G --shape llama-3.1-8b      on a GPU

times one request whose prefix the device has given up since it was computed, and the host has, over
computing it. The device has room for one such prompt: each takes the place of the one before.
Beside it stands the ceiling: the bytes that came back, at the rate measured at start.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import defaultdict

from shapes import add_model_arguments, model_options

from minisgl import LLM, SamplingParams
from minisgl.flags import parse_count

MAX_ID = 10000


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("mode", nargs="?", choices=["cached", "evicted"], default="cached")
    parser.add_argument("--kv-host-bytes", type=parse_count, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompt-tokens", type=int, help="2048; evicted: 16000")
    parser.add_argument("--cached", type=int, nargs="+", default=[0, 1024, 1843, 2032])
    parser.add_argument("--requests", type=int, nargs="+", default=[1], help="at once")
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[1], help="per request")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    args.prompt_tokens = args.prompt_tokens or (16000 if args.mode == "evicted" else 2048)
    return measure_evicted(args) if args.mode == "evicted" else measure_cached(args)


def measure_evicted(args: argparse.Namespace) -> int:
    model, load_format = model_options(args)
    length, page = args.prompt_tokens, 16
    with LLM(
        model,
        load_format=load_format,
        device=args.device,
        num_threads=args.threads,
        max_model_len=length + 2 * page,
        kv_cache_tokens=length + 4 * page,
        kv_host_bytes=args.kv_host_bytes,
        show_progress=False,
    ) as llm:
        info, rng = llm.info, random.Random(0)
        page_bytes = info.kv_cache_bytes // info.num_pages
        rate = info.host_bytes_per_second
        print(f"{info.host_tokens} tokens in the host tier, from there at {rate / 1e9:.1f} GB/s")

        def seconds(prompt: list[int]) -> tuple[float, int]:
            start = time.perf_counter()
            (result,) = llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
            return time.perf_counter() - start, result.num_cached_tokens

        def wait_until_copied(num_prompts: int) -> None:
            deadline = time.monotonic() + 30
            while llm.stats().host_bytes_out < num_prompts * (length // page) * page_bytes:
                assert time.monotonic() < deadline, "the host tier hasn't got the prompts"
                time.sleep(0.01)

        def ids(count: int) -> list[int]:
            return [rng.randint(0, MAX_ID) for _ in range(count)]

        prompts = [ids(length) for _ in range(2)]
        seconds(ids(length))  # kernels are chosen
        computed = []
        for count, prompt in enumerate(prompts, 2):
            wait_until_copied(count - 1)
            computed.append(seconds(prompt)[0])
        wait_until_copied(3)
        times, floors = [], []
        for i in range(args.rounds):
            before = llm.stats().host_bytes_in
            took, cached = seconds(prompts[i % 2] + ids(page // 2))  # the other one has its place
            came = llm.stats().host_bytes_in - before
            assert cached == length, cached
            times.append(took)
            floors.append(came / rate)
            print(f"{came / 1e6:.0f} MB came back in {1000 * took:.1f} ms")
        whole, took = statistics.median(computed), statistics.median(times)
        floor = statistics.median(floors)
        print("computed ms  evicted ms  ratio  bytes at that rate ms  floor over evicted")
        line = f"{1000 * whole:11.1f} {1000 * took:11.1f} {took / whole:6.3f}"
        print(f"{line} {1000 * floor:22.1f} {floor / took:19.3f}")
    return 0


def measure_cached(args: argparse.Namespace) -> int:
    model, load_format = model_options(args)
    longest = args.prompt_tokens + max(args.max_tokens)
    with LLM(
        model,
        load_format=load_format,
        device=args.device,
        num_threads=args.threads,
        max_model_len=longest,
        kv_cache_tokens=2 * max(args.requests) * (longest + 16),
        show_progress=False,
    ) as llm:
        rng = random.Random(0)

        def ids(count: int) -> list[int]:
            return [rng.randint(0, MAX_ID) for _ in range(count)]

        def seconds(prompts: list[list[int]], max_tokens: int = 1) -> float:
            params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0)
            start = time.perf_counter()
            results = llm.generate(prompts, params, use_tqdm=False)
            took = time.perf_counter() - start
            found.append(results[0].num_cached_tokens)
            return took

        times: dict[tuple[int, int, int], list[tuple[float, float, float]]] = defaultdict(list)
        found: list[int] = []
        print("requests  new tokens  cached          ms  suffix alone    ratio  its rows  ratio")
        for _ in range(args.rounds):
            for count in args.requests:
                for max_tokens in args.max_tokens:
                    for cached in args.cached:
                        rest = args.prompt_tokens - cached
                        prefix = ids(cached)
                        before = seconds([prefix]) if cached else 0.0
                        took = seconds([prefix + ids(rest) for _ in range(count)], max_tokens)
                        hit = found[-1]
                        alone = seconds([ids(rest) for _ in range(count)], max_tokens)
                        whole = seconds([ids(args.prompt_tokens)])
                        key = (count, max_tokens, cached)
                        times[key].append((took, alone, whole - before))
                        assert hit + 16 > cached, (hit, cached)
        for (count, max_tokens, cached), rows in times.items():
            took, alone, rows_alone = (
                statistics.median(column) for column in zip(*rows, strict=True)
            )
            line = f"{count:8d}  {max_tokens:10d}  {cached:6d}  {1000 * took:10.1f}"
            line += f"  {1000 * alone:10.1f} {took / alone:8.2f}"
            if count == max_tokens == 1:
                line += f"  {1000 * rows_alone:8.1f} {took / rows_alone:6.2f}"
            print(line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
