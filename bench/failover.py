"""What clients see of a rank that is killed or stopped under them.

    python bench/failover.py serve-16 --tp 3                       the default model
    python bench/failover.py serve-64 --tp 2 --shape qwen3-0.6b    dummy weights, see shapes.py
    python bench/failover.py serve-16 --tp 1 --replicas 3          the others go on
    python bench/failover.py serve-16 --tp 1 --replicas 3 --signal STOP
    python bench/failover.py serve-64 --tp 1 --replicas 2 --again recording
    python bench/failover.py serve-64 --tp 1 --replicas 2 --first recording
    python bench/failover.py serve-64 --tp 1 --replicas 2 --changes 10
    python bench/failover.py serve-64 --tp 1 --replicas 2 --replace

N concurrent streams run undisturbed, and once more; after a while (--after) the process of a rank
(--rank, of --replica) gets a signal. The server starts its ranks again and goes on with the
streams: at once where there are other replicas. Shown is how each stream ended, whether it has all
its tokens once (as many ids came as the server counted and as were asked for) and the text that it
had undisturbed, the longest time that it waited for one since the signal, and how long it took
until all was as before. Of replicas, the streams with the longest gaps are taken for those that
moved: as many as the lost one had. With --again the rank is killed, and its successor gets the
signal, too, once /health says that it is at such a phase. With --first a replica (the last, unless
--replica says otherwise) is held back in its first start, for 30 s at most; the others run all
streams undisturbed, then once more, while it goes on and gets the signal at such a phase. With
--changes nothing is killed: so many times, --after seconds apart, the oldest replica is removed and
a new one added, while rounds of the streams follow each other. With --replace all are replaced
meanwhile, one after the other.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from server_process import ADMIN_KEY, RunningServer, serving
from serving import run_http, served_model, timings_of, workload_requests
from shapes import add_model_arguments, server_command
from sse_client import Received, StreamError, run_streams
from workloads import make_workload


class Killer(threading.Thread):
    """Sends a signal to a rank after `delay` seconds, then waits until all is as before."""

    def __init__(self, server: RunningServer, args: argparse.Namespace) -> None:
        super().__init__()
        self._server = server
        self._args = args
        self.killed_at = 0.0  # time.monotonic()
        self.num_moved = 0  # streams that the replica had
        self.seconds_to_ready = 0.0

    def run(self) -> None:
        args, server = self._args, self._server
        replica = args.replica if args.replicas > 1 else None
        process = server.rank(args.rank, replica)
        time.sleep(args.after)
        if replica is not None:
            name = f'minisgl:replica_num_streams{{.*replica="{replica}"}} (.*)'
            found = re.search(name, server.get("/metrics"))
            assert found, "the server has no such replica"
            self.num_moved = int(float(found[1]))
        self.killed_at = time.monotonic()
        wanted = signal.Signals[f"SIG{args.signal}"]
        os.kill(process, signal.SIGKILL if args.again else wanted)
        if args.again:
            phase = ""
            while not re.search(args.again, phase):
                phase = json.loads(server.get("/health")).get("phase", "")
            os.kill(server.rank(args.rank, replica), wanted)
            at = time.monotonic() - self.killed_at
            print(f"again              SIG{args.signal} after {at:.2f} s, at {phase!r}")
        while server.is_whole(args.replicas):
            time.sleep(0.001)
        server.wait_whole(args.replicas)
        self.seconds_to_ready = time.monotonic() - self.killed_at


class FirstStart(Killer):
    """Lets a replica that is held back in its first start go on, and sends it the signal when it is
    at the phase.
    """

    def run(self) -> None:
        args, server = self._args, self._server
        held = server.rank(args.rank, args.replica)
        time.sleep(args.after)
        begin = time.monotonic()
        os.kill(held, signal.SIGCONT)
        phase = ""
        while not re.search(f"replica {args.replica}: .*(?:{args.first})", phase):
            phase = json.loads(server.get("/health")).get("phase", "")
            if server.is_whole(args.replicas):
                raise SystemExit(f"the start was over before it was at {args.first!r}")
        self.killed_at = time.monotonic()
        if server.rank(args.rank, args.replica) != held:
            raise SystemExit("the replica was held back too long, and is no longer at its first")
        os.kill(held, signal.Signals[f"SIG{args.signal}"])
        at = self.killed_at - begin
        print(f"first start        SIG{args.signal} after {at:.2f} s, at {phase!r}")
        server.wait_whole(args.replicas)
        self.seconds_to_ready = time.monotonic() - self.killed_at


def hold_back(pid: int, args: argparse.Namespace) -> None:
    """Stops the rank of a server that has just begun, as soon as its process is there."""
    server = RunningServer("", pid, 0.0)
    while True:
        with contextlib.suppress(StopIteration, FileNotFoundError):
            os.kill(server.rank(args.rank, args.replica), signal.SIGSTOP)
            return
        time.sleep(0.001)


class Changer(Killer):
    """Removes the oldest replica and adds a new one, again and again."""

    def run(self) -> None:
        args, server = self._args, self._server
        self.killed_at = time.monotonic()
        for number in range(args.changes):
            time.sleep(args.after)
            server.change_replicas("DELETE", f"/{number}")
            server.change_replicas("POST")
        server.wait_whole(args.replicas)
        self.seconds_to_ready = time.monotonic() - self.killed_at


class Replacer(Killer):
    """Replaces all replicas by others with the same model, one after the other."""

    def run(self) -> None:
        time.sleep(self._args.after)
        self.killed_at = time.monotonic()
        self._server.change_replicas("POST", "/replace")
        self._server.wait_whole(self._args.replicas)
        self.seconds_to_ready = time.monotonic() - self.killed_at


def longest_gap(sent: float, arrivals: Sequence[float], killed_at: float) -> float:
    """The longest time between two events of a stream, in seconds, of those that the kill ended or
    that came later. Tokens on their way at the kill arrive at once; the gap is behind them.

    `sent` is when the request was sent, which the wait for the first event begins with.
    """
    gaps = zip([sent, *arrivals], arrivals, strict=False)
    return max(arrived - before for before, arrived in gaps if arrived > killed_at)


def text_of(stream: Received) -> str:
    """All text of a stream that ended well. Raises StreamError."""
    return "".join(choice["text"] for choice in choices_of(stream))


def choices_of(stream: Received) -> list[dict[str, Any]]:
    """What came of a stream's one choice. Raises StreamError."""
    events = [json.loads(event.data) for event in stream.events()]
    return [choice for event in events for choice in event["choices"]]


def fault_of(stream: Received, expected: int) -> str:
    """What is wrong with the tokens of a stream that ended well; "" where each came once."""
    counted = json.loads(stream.events()[-1].data)["usage"]["completion_tokens"]
    came = sum(len(choice.get("token_ids") or ()) for choice in choices_of(stream))
    if came == counted == expected:
        return ""
    return f"{came} tokens came and {counted} were counted of {expected}"


def report(
    streams: list[Received], before: list[Received], expected: list[int], killer: Killer
) -> int:
    """Prints what became of the streams, which ran undisturbed `before`; the number of those that
    lost something.
    """
    ended_before, same, disturbed, faults = 0, 0, [], []
    for stream, undisturbed, count in zip(streams, before, expected, strict=True):
        try:
            *events, end = stream.events()
        except StreamError as error:
            faults.append(str(error))
            continue
        if fault := fault_of(stream, count):
            faults.append(fault)
        same += text_of(stream) == text_of(undisturbed)
        arrivals = [event.arrived for event in [*events, end]]
        if arrivals[-1] < killer.killed_at:
            ended_before += 1
        else:
            disturbed.append((longest_gap(stream.sent, arrivals, killer.killed_at), stream))
    print(f"streams            {len(streams)}, {ended_before} of them over before it")
    print(f"lost something     {len(faults)}")
    print(f"same text          {same}")
    disturbed.sort(key=lambda pair: pair[0], reverse=True)
    moved, others = disturbed[: killer.num_moved], disturbed[killer.num_moved :]
    for name, pairs in (("moved", moved), ("others" if moved else "", others)):
        if pairs:
            gaps = [gap for gap, _ in pairs]
            shown = f"median {statistics.median(gaps):.3f} s, max {gaps[0]:.3f} s"
            print(f"longest gap        {shown} ({len(gaps)} streams {name})".replace(" )", ")"))
    if others:
        normal = p99_gap(timings_of(before).gaps)
        since = p99_gap(gaps_since(killer.killed_at, [stream for _, stream in others]))
        which = "of the others" if moved else "of all streams"
        shown = f"{normal:.1f} ms undisturbed, {since:.1f} ms {which} since"
        print(f"p99 gap            {shown}: {since / normal:.2f}")
    print(f"as before after    {killer.seconds_to_ready:.2f} s")
    for fault in sorted(set(faults)):
        print(f"fault: {fault}")
    return len(faults)


def gaps_since(moment: float, streams: Sequence[Received]) -> list[float]:
    """Seconds between two events, of those that ended later."""
    arrivals = ([event.arrived for event in stream.events()] for stream in streams)
    return [b - a for times in arrivals for a, b in pairwise(times) if b > moment]


def p99_gap(gaps: list[float]) -> float:
    """Milliseconds between two events of a stream."""
    return 1e3 * statistics.quantiles(gaps, n=100)[98]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("workload", help="serve-N")
    add_model_arguments(parser)
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--rank", type=int, help="the one that is lost; default: the last")
    parser.add_argument("--replica", type=int, help="whose rank is lost; default: the first")
    parser.add_argument("--signal", choices=("KILL", "STOP"), default="KILL")
    parser.add_argument("--again", metavar="PHASE", help="of the next process (an expression)")
    parser.add_argument("--first", metavar="PHASE", help="of a first start (an expression)")
    parser.add_argument("--changes", type=int, default=0)
    parser.add_argument("--replace", action="store_true")
    parser.add_argument("--tokens", type=int, default=256, help="per answer")
    parser.add_argument("--after", type=float, default=1.0, help="seconds from the first request")
    args = parser.parse_args()
    args.rank = args.tp - 1 if args.rank is None else args.rank
    if args.replica is None:
        args.replica = 0 if args.first is None else args.replicas - 1
    if not (0 <= args.rank < args.tp and 0 <= args.replica < args.replicas):
        parser.error(f"there are ranks 0 to {args.tp - 1} of replicas 0 to {args.replicas - 1}")
    if args.first is not None and args.replicas == 1:
        parser.error("--first needs --replicas 2 or more: others serve meanwhile")
    return args


def kind_of_killer(args: argparse.Namespace) -> type[Killer]:
    if args.first is not None:
        return FirstStart
    return Replacer if args.replace else Changer if args.changes else Killer


def main() -> int:
    args = arguments()
    workload = make_workload(args.workload)
    workload = replace(workload, max_tokens=[args.tokens] * len(workload.prompts))
    admin = bool(args.changes) or args.replace
    command = server_command(args, "--replicas", str(args.replicas))
    command += ["--admin-api-key", ADMIN_KEY] if admin else []
    held = args.first is not None
    on_begin = functools.partial(hold_back, args=args) if held else lambda pid: None
    with serving(command, quiet=False, on_begin=on_begin) as server:
        name = served_model(server.url)
        requests = workload_requests(server.url, name, workload, return_token_ids=True)
        server.wait_whole(args.replicas - held)
        run_streams(server.url, requests, len(requests))  # prompts are cached from here on
        undisturbed = run_streams(server.url, requests, len(requests))
        killer = kind_of_killer(args)(server, args)
        killer.start()
        streams = run_streams(server.url, requests, len(requests))
        while admin and killer.is_alive():
            streams += run_streams(server.url, requests, len(requests))
        killer.join()
        if not killer.seconds_to_ready:
            raise SystemExit("what was to be done to the server was not done")
        after = run_http(server.url, name, workload)
    alone = timings_of(undisturbed)
    what = f"rank {args.rank} of replica {args.replica} gets SIG{args.signal}"
    if args.changes:
        what = f"{args.changes} replicas are removed and added"
    if args.replace:
        what = "all replicas are replaced"
    print(f"{workload.name}, {args.replicas} x {args.tp} ranks, {what} after {args.after:g} s")
    rounds = len(streams) // len(requests)
    lost = report(streams, undisturbed * rounds, workload.max_tokens * rounds, killer)
    print(f"output             {alone.rate:.0f} tok/s before, {after.rate:.0f} tok/s afterwards")
    return 1 if lost or alone.failed or after.failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
