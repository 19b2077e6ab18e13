"""What clients see of a rank that is killed under them.

    python bench/failover.py serve-16 --tp 3                       the default model
    python bench/failover.py serve-64 --tp 2 --shape qwen3-0.6b    dummy weights, see shapes.py

N concurrent streams run; after a while (--after) the process of a rank (--rank) gets SIGKILL. The
server starts its ranks again and goes on with the streams. Shown is how each stream ended, whether
it has all its tokens, the longest time that it waited for one since the kill, and how long it took
until the server was ready for new requests.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Sequence

from server_process import RunningServer, serving
from serving import run_http, served_model, workload_requests
from shapes import add_model_arguments, server_command
from sse_client import Received, StreamError, run_streams
from workloads import make_workload


class Killer(threading.Thread):
    """Kills a rank after `delay` seconds, then waits until the server is ready again."""

    def __init__(self, server: RunningServer, rank: int, delay: float) -> None:
        super().__init__()
        self._server = server
        self._rank = rank
        self._delay = delay
        self.killed_at = 0.0  # time.monotonic()
        self.seconds_to_ready = 0.0

    def run(self) -> None:
        time.sleep(self._delay)
        ranks = self._server.ranks()
        self.killed_at = time.monotonic()
        os.kill(ranks[self._rank], signal.SIGKILL)
        while self._server.is_ready():
            time.sleep(0.001)
        while not self._server.is_ready():
            time.sleep(0.005)
        self.seconds_to_ready = time.monotonic() - self.killed_at


def longest_gap(sent: float, arrivals: Sequence[float], killed_at: float) -> float:
    """The longest time between two events of a stream, in seconds, of those that the kill ended or
    that came later. Tokens on their way at the kill arrive at once; the gap is behind them.

    `sent` is when the request was sent, which the wait for the first event begins with.
    """
    gaps = zip([sent, *arrivals], arrivals, strict=False)
    return max(arrived - before for before, arrived in gaps if arrived > killed_at)


def report(streams: list[Received], expected: list[int], killer: Killer) -> int:
    """Prints what became of the streams; the number of those that lost something."""
    ended_before, pauses, faults = 0, [], []
    for stream, count in zip(streams, expected, strict=True):
        try:
            *events, end = stream.events()
        except StreamError as error:
            faults.append(str(error))
            continue
        tokens = json.loads(end.data)["usage"]["completion_tokens"]
        if tokens != count:
            faults.append(f"{tokens} tokens of {count}")
        arrivals = [event.arrived for event in [*events, end]]
        if arrivals[-1] < killer.killed_at:
            ended_before += 1
        else:
            pauses.append(longest_gap(stream.sent, arrivals, killer.killed_at))
    print(f"streams            {len(streams)}, {ended_before} of them over before the kill")
    print(f"lost something     {len(faults)}")
    if pauses:
        shown = f"median {statistics.median(pauses):.2f} s, max {max(pauses):.2f} s"
        print(f"longest gap        {shown} (per stream)")
    print(f"ready again after  {killer.seconds_to_ready:.2f} s")
    for fault in sorted(set(faults)):
        print(f"fault: {fault}")
    return len(faults)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="serve-N")
    add_model_arguments(parser)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--rank", type=int, default=1, help="the one that is killed")
    parser.add_argument("--after", type=float, default=1.0, help="seconds from the first request")
    args = parser.parse_args()
    if not 0 <= args.rank < args.tp:
        parser.error(f"--rank {args.rank}: there are ranks 0 to {args.tp - 1}")

    workload = make_workload(args.workload)
    with serving(server_command(args), quiet=False) as server:
        name = served_model(server.url)
        alone = run_http(server.url, name, workload)
        requests = workload_requests(server.url, name, workload)
        killer = Killer(server, args.rank, args.after)
        killer.start()
        streams = run_streams(server.url, requests, len(requests))
        killer.join()
        after = run_http(server.url, name, workload)
    print(f"{workload.name}, {args.tp} ranks, rank {args.rank} killed after {args.after:g} s")
    lost = report(streams, workload.max_tokens, killer)
    print(f"output             {alone.rate:.0f} tok/s before, {after.rate:.0f} tok/s afterwards")
    return 1 if lost or alone.failed or after.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
