"""Simulates a fleet of replicas behind the server's router: hits, balance and time to first token.

    python bench/fleet.py                     1,000 replicas, all routers, then failures
    python bench/fleet.py --replicas 8 --chats --cache-tokens 100000 --fill 300 --seconds 100

The router is the real one, and its own time is measured; replicas are simulated by events, with
step times that were measured on one H200 (fleet_replica.py). Clients are those of fleet_traffic.py:
prefixes of 2,048 tokens by Zipf's law, each followed by what only one client says. At --load 0.7
the prompts and answers need 0.7 of the fleet's time where nothing is found in a cache and 64
sequences share each step. Requests count from --warm seconds on, for --seconds; before that caches
are filled with --fill prefixes per replica, chosen by the router, without time.

prefix, least and round are the router's choices. "pooled" is least where all replicas share one
cache as large as theirs together, "ideal" where they share one that forgets nothing. Then some
replicas die and others are replaced, one after the other; what they served goes on elsewhere with
all it had. The same --seed gives the same figures, but for the router's time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fleet_replica import (
    CACHE_TOKENS,
    CONTEXT,
    PREFILL,
    SEQUENCE,
    STEP,
    Cache,
    Replica,
    Request,
)
from fleet_traffic import CHATS, MIXED, Conversation, Traffic

from minisgl.engine.router import Ask, Router

START_SECONDS = 5.0  # from a death to the next replica in its place
POLICIES = ["prefix", "least", "round", "pooled", "ideal"]
SHARED = ("pooled", "ideal")  # replicas have one cache together
FILLING = 4  # requests per replica that run at once while caches are filled


@dataclass(frozen=True)
class Plan:
    """What is simulated."""

    replicas: int = 1000
    prefixes: int = 5000
    load: float = 0.7
    seed: int = 0
    warm: float = 10.0  # seconds
    seconds: float = 10.0
    fill: int = 200
    cache_tokens: int = CACHE_TOKENS
    chats: bool = False
    sessions: bool = False
    speed: float = 1.0
    deaths: int = 0  # while requests are measured
    rolled: int = 0  # replicas that are replaced one after the other in that time


@dataclass
class Report:
    """What came out; times in seconds."""

    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # of moved streams
    router: list[float] = field(default_factory=list)  # per request
    hits: int = 0
    asked: int = 0
    tokens: list[int] = field(default_factory=list)  # per replica
    lost: int = 0

    @property
    def hit_rate(self) -> float:
        return self.hits / self.asked

    @property
    def busiest(self) -> float:
        """Tokens of the busiest replica over the mean."""
        return max(self.tokens) / statistics.mean(self.tokens)

    def percentile(self, share: float) -> float:
        return sorted(self.ttft)[math.ceil(share * len(self.ttft)) - 1]

    def line(self) -> str:
        p50, p99 = 1e3 * self.percentile(0.5), 1e3 * self.percentile(0.99)
        cost = 1e6 * statistics.median(self.router)
        return (
            f"{len(self.ttft):9d}  {self.hit_rate:8.3f}  {self.busiest:12.2f}  {p50:8.1f}  "
            f"{p99:8.1f}  {cost:9.1f}"
        )


def seconds_of(conversation: Conversation) -> float:
    """What its requests take where nothing is cached and 64 sequences share a step."""
    return sum(
        PREFILL * prompt + answer * (STEP / 64 + SEQUENCE + CONTEXT * (prompt + answer / 2))
        for prompt, answer in conversation.prompt_tokens()
    )


class Fleet:
    """One run of a policy."""

    def __init__(self, policy: str, plan: Plan) -> None:
        self._plan = plan
        self._traffic = self._new_traffic()
        self._router = Router("least" if policy in SHARED else policy)
        room = math.inf if policy == "ideal" else plan.replicas * plan.cache_tokens
        shared = Cache(room) if policy in SHARED else None
        self._replicas = [
            Replica(number, shared or Cache(plan.cache_tokens), plan.speed)
            for number in range(plan.replicas)
        ]
        for replica in self._replicas:
            self._router.add(replica.id, cache_tokens=plan.cache_tokens)
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = itertools.count()
        self._ids = itertools.count()
        self._at: dict[int, Replica] = {}  # of live requests
        self._conversations = itertools.count()
        self._open = 0  # measured requests that have not ended
        self._end = plan.warm + plan.seconds
        self.report = Report()

    def _new_traffic(self) -> Traffic:
        return Traffic(self._plan.seed, self._plan.prefixes, CHATS if self._plan.chats else MIXED)

    def run(self) -> Report:
        plan, sample = self._plan, self._new_traffic()
        self._fill()
        mean = statistics.mean(seconds_of(sample.conversation(number)) for number in range(2000))
        self._between = mean / (plan.load * plan.replicas * plan.speed)
        self._call(0.0, self._arrive)
        for number in range(plan.deaths):
            when = plan.warm + plan.seconds * number / plan.deaths
            self._call(when, self._end_replica, 7919 * number % plan.replicas)
        for number in range(plan.rolled):
            when = plan.warm + plan.seconds * number / plan.rolled
            self._call(when, self._end_replica, number)
        now = 0.0
        while self._events and (now < self._end or self._open):
            now, _, act, arguments = heapq.heappop(self._events)
            act(now, *arguments)
        self.report.lost = self._open
        for replica in self._replicas:
            self.report.hits += replica.hits
            self.report.asked += replica.asked
            self.report.tokens.append(replica.tokens)
        return self.report

    def _call(self, when: float, act: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (when, next(self._order), act, arguments))

    # --- clients

    def _fill(self) -> None:
        running: deque[tuple[int, Sequence[int]]] = deque()
        for _ in range(self._plan.fill * self._plan.replicas):
            prefix, id = self._traffic.prefix(), next(self._ids)
            tokens = self._traffic.prefix_tokens(prefix)
            there = self._router.choose(Ask(id, tokens)).replica
            self._router.placed(id, there, tokens)
            self._router.progressed(id, 1)
            self._replicas[there].cache.insert_prefix(prefix)
            running.append((id, tokens))
            if len(running) > FILLING * self._plan.replicas:
                self._router.finished(*running.popleft())
        for id, tokens in running:
            self._router.finished(id, tokens)

    def _arrive(self, now: float) -> None:
        self._ask(now, self._traffic.conversation(next(self._conversations)))
        later = now + self._traffic.pause(self._between)
        if later < self._end:
            self._call(later, self._arrive)

    def _ask(self, now: float, conversation: Conversation) -> None:
        turn = conversation.turns[conversation.next_turn]
        conversation.next_turn += 1
        tokens = self._traffic.say(conversation, turn.question)
        measured = self._plan.warm <= now < self._end
        self._open += measured
        id = next(self._ids)
        request = Request(id, conversation, len(tokens), turn.answer, now, measured)
        self._send(now, request, tokens)

    def _ended(self, request: Request, now: float) -> None:
        conversation = request.conversation
        self._open -= request.measured
        tokens = self._traffic.say(conversation, request.answer - request.said)
        self._router.progressed(request.id, request.answer - request.said - 1)
        begin = time.perf_counter()
        self._router.finished(request.id, tokens)
        request.cost += time.perf_counter() - begin
        del self._at[request.id]
        if request.measured:
            self.report.router.append(request.cost)
        if conversation.next_turn < len(conversation.turns):
            pause = conversation.turns[conversation.next_turn].pause
            if now + pause < self._end:
                self._call(now + pause, self._ask, conversation)

    # --- replicas

    def _send(self, now: float, request: Request, tokens: Sequence[int]) -> None:
        session = str(request.conversation.id) if self._plan.sessions else None
        begin = time.perf_counter()
        there = self._router.choose(Ask(request.id, tokens, session=session)).replica
        self._router.placed(request.id, there, tokens)
        request.cost += time.perf_counter() - begin
        replica = self._at[request.id] = self._replicas[there]
        self._due(replica, replica.submit(request, now))

    def _due(self, replica: Replica, when: float | None) -> None:
        if when is not None:
            self._call(when, self._step, replica, replica.version)

    def _step(self, now: float, replica: Replica, version: int) -> None:
        if replica.version == version:
            self._due(replica, replica.end_steps(now, self._first, self._ended))

    def _first(self, request: Request, now: float) -> None:
        self._router.progressed(request.id, 1)
        if request.lost_at >= 0:
            self.report.gaps.append(now - request.lost_at)
            request.lost_at = -1.0
        if request.first < 0:
            request.first = now
            if request.measured:
                self.report.ttft.append(now - request.sent)

    def _end_replica(self, now: float, number: int) -> None:
        """A death, or a replacement: the same for those that it served."""
        if number not in self._router.replicas:
            return
        replica = self._replicas[number]
        self._router.remove(number)
        for request in replica.die(now):
            if request.first >= 0 and request.lost_at < 0:
                request.lost_at = now
            tokens = self._traffic.say(request.conversation, request.generated - request.said)
            request.said = request.generated
            self._send(now, request, tokens)
        self._call(now + START_SECONDS, self._begin_replica, number)

    def _begin_replica(self, now: float, number: int) -> None:
        self._router.add(number, cache_tokens=self._plan.cache_tokens)


HEADER = "             requests  hit rate  busiest/mean  TTFT p50  p99 (ms)  router us"


def show(name: str, report: Report) -> Report:
    print(f"{name:12s}{report.line()}", flush=True)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    plan = Plan()
    for name, kind in (
        ("replicas", int),
        ("prefixes", int),
        ("load", float),
        ("seed", int),
        ("warm", float),
        ("seconds", float),
        ("fill", int),
        ("cache_tokens", int),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(plan, name))
    parser.add_argument("--chats", action="store_true", help="no agents, no batch")
    parser.add_argument("--sessions", action="store_true", help="clients name their conversations")
    parser.add_argument("--routing", nargs="+", default=POLICIES, choices=POLICIES, metavar="HOW")
    parser.add_argument("--deaths", type=int, default=20)
    parser.add_argument("--rolled", type=int, default=50)
    args = vars(parser.parse_args())
    routings, deaths, rolled = args.pop("routing"), args.pop("deaths"), args.pop("rolled")
    plan = Plan(**args)
    print(HEADER)
    reports = {name: show(name, Fleet(name, plan).run()) for name in routings}
    if {"prefix", "round"} <= set(reports):
        ratio = reports["prefix"].percentile(0.99) / reports["round"].percentile(0.99)
        print(f"TTFT p99 of prefix over round: {ratio:.2f}")
    if {"prefix", "pooled"} <= set(reports):
        ratio = reports["prefix"].hit_rate / reports["pooled"].hit_rate
        print(f"hit rate of prefix over pooled: {ratio:.3f}")
    if deaths or rolled:
        failing = replace(plan, deaths=deaths, rolled=rolled)
        report = show("prefix, *", Fleet("prefix", failing).run())
        gaps = sorted(report.gaps)
        print(
            f"* {deaths} replicas die and {rolled} are replaced: {report.lost} requests lost, "
            f"{len(gaps)} streams moved, without a token for {1e3 * statistics.median(gaps):.0f} "
            f"to {1e3 * gaps[-1]:.0f} ms (median, most)"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
