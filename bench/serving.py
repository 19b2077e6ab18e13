"""N concurrent SSE clients: TTFT, inter-token latency and throughput with percentiles.

    python bench/serving.py serve-16                           starts minisgl-serve for it
    python bench/serving.py serve-16 --over-engine             and compares with the engine alone
    python bench/serving.py serve-64 --shape qwen3-0.6b        dummy weights, see shapes.py
    python bench/serving.py serve-16 --url http://HOST:PORT    a server that runs already

TTFT counts from the moment the request is sent, inter-token latency from the arrival of each event.
Tokens are the server's own count (`usage`), so that several tokens in one event are all counted.
Where the server is started here, the processor time of its parts is shown too: what all but the
engine take of it is what HTTP costs, however noisy the machine is.
--over-engine runs the same prompts through `LLM`, in a process of its own, before and after each
run over HTTP, so that the ratio is one of neighbours in time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from server_process import serving
from shapes import add_model_arguments, server_command
from sse_client import Received, StreamError, post, run_streams
from workloads import Workload, make_workload


@dataclass
class Timings:
    rate: float  # tokens/s, from the first request sent to the last event
    failed: list[str] = field(default_factory=list)
    first: list[float] = field(default_factory=list)  # seconds, a request each
    gaps: list[float] = field(default_factory=list)  # seconds between events


def workload_requests(url: str, model: str, workload: Workload, **more: object) -> list[bytes]:
    """A streaming completion for each of the workload's prompts, with these fields more."""
    return [
        post(
            url,
            "/v1/completions",
            {
                "model": model,
                "prompt": prompt,
                "max_tokens": count,
                "temperature": workload.temperature,
                "seed": number,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
                **more,
            },
        )
        for number, (prompt, count) in enumerate(
            zip(workload.prompts, workload.max_tokens, strict=True)
        )
    ]


def run_http(url: str, model: str, workload: Workload) -> Timings:
    """All requests of the workload at once."""
    requests = workload_requests(url, model, workload)
    return timings_of(run_streams(url, requests, len(requests)))


def timings_of(streams: list[Received]) -> Timings:
    """What streams that were received say of the server."""
    timings = Timings(0.0)
    tokens, last = 0, 0.0
    for stream in streams:
        try:
            *events, end = stream.events()
        except StreamError as error:
            timings.failed.append(str(error))
            continue
        tokens += json.loads(end.data)["usage"]["completion_tokens"]
        arrivals = [event.arrived for event in events]
        if arrivals:  # else the only token had no text
            timings.first.append(arrivals[0] - stream.sent)
        timings.gaps += [later - earlier for earlier, later in pairwise(arrivals)]
        last = max(last, end.arrived)
    timings.rate = tokens / (last - min(stream.sent for stream in streams)) if tokens else 0.0
    return timings


def percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "too few values"
    cuts = statistics.quantiles(values, n=100)
    return f"p50 {cuts[49] * 1e3:8.1f}  p90 {cuts[89] * 1e3:8.1f}  p99 {cuts[98] * 1e3:8.1f} ms"


def served_model(url: str, *, key: str = "") -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    connection.request("GET", "/v1/models", headers=headers)
    model: str = json.load(connection.getresponse())["data"][0]["id"]
    connection.close()
    return model


def run_engine(args: argparse.Namespace) -> float:
    """Tokens/s of the workload through `LLM`, by offline.py."""
    command = [sys.executable, str(Path(__file__).with_name("offline.py")), args.workload]
    command += ["--json", "--runs=1", f"--threads={args.threads}", f"--tp={args.tp}"]
    command += [f"--model={args.model}"] if args.model else []
    command += [f"--shape={args.shape}"] if args.shape else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rate: float = json.loads(done.stdout)["output"]
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="serve-N, or another of workloads.py")
    parser.add_argument("--url", help="default: a server is started")
    add_model_arguments(parser)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--over-engine", action="store_true")
    args = parser.parse_args()

    workload = make_workload(args.workload)
    flags = (f"--threads={args.threads}", f"--replicas={args.replicas}", "--disable-prefix-cache")
    command = server_command(args, *flags)
    runs: list[Timings] = []
    alone: list[float] = []
    spent: Counter[str] = Counter()  # seconds of processor time
    for _ in range(args.runs):
        if args.over_engine:
            alone.append(run_engine(args))
        if args.url:
            runs.append(run_http(args.url, served_model(args.url), workload))
        else:
            with serving(command) as server:
                server.wait_whole(args.replicas)
                # The first tokens alone before, as offline.py does it.
                first = replace(workload, max_tokens=[1] * len(workload.prompts))
                run_http(server.url, served_model(server.url), first)
                before = {**server.cpu_seconds(), "client": time.process_time()}
                runs.append(run_http(server.url, served_model(server.url), workload))
                after = {**server.cpu_seconds(), "client": time.process_time()}
                spent.update({part: after[part] - before[part] for part in after})
    if args.over_engine:
        alone.append(run_engine(args))

    rates = [timings.rate for timings in runs]
    failed = [error for timings in runs for error in timings.failed]
    print(f"{workload.name}: {workload.prompt_tokens} tokens in, {workload.output_tokens} out")
    print(f"output        {statistics.median(rates):8.1f} tok/s (of {args.runs} runs)")
    print(f"TTFT          {percentiles([value for run in runs for value in run.first])}")
    print(f"inter-token   {percentiles([value for run in runs for value in run.gaps])}")
    if spent:
        shown = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in spent.items())
        share = 1 - spent["engine"] / sum(spent.values())
        print(f"processor     {shown}: {100 * share:.1f}% beside the engine")
    if args.over_engine:
        ratios = [
            2 * rate / (before + after)
            for rate, (before, after) in zip(rates, pairwise(alone), strict=True)
        ]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"engine alone  {statistics.median(alone):8.1f} tok/s")
        print(f"HTTP/engine   {statistics.median(ratios):8.3f} ({shown}; wanted 0.90, aim 0.98)")
    for error in sorted(set(failed)):
        print(f"failed: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
