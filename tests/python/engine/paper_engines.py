"""Replicas whose engines have no process: they make a token when they are told to, and die when
they are told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisgl.engine.admission import Admission
from minisgl.engine.client import EngineClient
from minisgl.engine.launcher import RankEvents
from minisgl.engine.peers import ALONE, Peers
from minisgl.engine.placement import NoRoom
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.router import Router
from minisgl.engine.site import Lot
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Output,
    Place,
    Ready,
    StepOutputs,
    Submit,
)

VOCABULARY = 1000


def next_token(tokens: Sequence[int]) -> int:
    """What follows these tokens: all of them, and how many they are, decide."""
    return (sum(tokens) * 31 + len(tokens)) % VOCABULARY


def answer(prompt: list[int], count: int) -> list[int]:
    """What an undisturbed engine says."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class PaperEngine:
    """The RankLauncher of one rank."""

    def __init__(self, events: RankEvents, site: PaperSite, number: int) -> None:
        self.events = events
        self.alive = False
        self.requests: dict[int, Submit] = {}
        self._tokens: dict[int, list[int]] = {}
        self._site = site
        self._number = number

    async def start(self, options: EngineOptions, places: Sequence[Place]) -> None:
        if self._site.broken:
            raise OSError("the paper is wet")
        self.alive = True
        self._site.engines[self._number] = self
        info = EngineInfo(
            vocab_size=VOCABULARY,
            max_model_len=self._site.max_model_len,
            max_running=4,
            kv_cache_tokens=4096,
            prefix_cache=self._site.prefix_cache,
        )
        self.events.message(0, Ready(info))
        if self._site.short_lived:
            self.alive = False
            self.events.gone(0)
            how = "was killed by SIGKILL"
            asyncio.get_running_loop().call_later(0.002, self.events.end, 0, how)

    def send(self, rank: int, message: Any) -> bool:
        if not self.alive:
            return False
        if isinstance(message, Submit):
            assert message.id not in self.requests
            self.requests[message.id] = message
            self._tokens[message.id] = list(message.prompt)
        elif isinstance(message, Abort):
            for request_id in message.ids:
                if self.requests.pop(request_id, None):
                    self.say(Output(request_id, [], "abort"))
        return True

    def step(self) -> None:
        """A token for each request, unless one of them is poison."""
        if self.alive and any(self._is_poisoned(request) for request in self.requests.values()):
            self._site.num_deaths += 1
            self.die()
            return
        for request in list(self.requests.values()):
            tokens = self._tokens[request.id]
            tokens.append(next_token(tokens))
            generated = len(tokens) - len(request.prompt) + request.num_resumed
            last = generated == request.params.max_tokens
            if last:
                del self.requests[request.id]
            self.say(Output(request.id, [tokens[-1]], "length" if last else ""))

    def _is_poisoned(self, request: Submit) -> bool:
        poison = self._site.poison.get(request.id)
        return poison is not None and poison(request, len(self._tokens[request.id]))

    def say(self, output: Output) -> None:
        self.events.message(0, StepOutputs([output], EngineStats()))

    def die(self) -> None:
        """Its process ends; the last words come after the news of it."""
        self.alive = False
        self.events.gone(0)
        self.step()
        self.events.end(0, "was killed by SIGKILL")

    async def stop(self, farewell: Any | None) -> None:
        self.alive = False

    def kill(self) -> None:
        self.alive = False

    async def close(self) -> None:
        self.alive = False


@dataclass
class PaperLot:
    site: PaperSite
    number: int

    def launcher(self, events: RankEvents) -> PaperEngine:
        return PaperEngine(events, self.site, self.number)

    def fit(self, options: EngineOptions) -> EngineOptions:
        return options

    def give_back(self) -> None:
        self.site.taken.remove(self.number)

    def __str__(self) -> str:
        return "paper"


@dataclass
class PaperSite:
    """Room for some replicas."""

    room: int = 4
    max_model_len: int = 10_000
    prefix_cache: bool = True
    broken: bool = False  # no engine starts
    short_lived: bool = False  # each dies as soon as it is ready
    engines: dict[int, PaperEngine] = field(default_factory=dict)  # the latest of each replica
    taken: set[int] = field(default_factory=set)
    # By request: whether it kills an engine that has it with so many tokens, prompt included.
    poison: dict[int, Callable[[Submit, int], bool]] = field(default_factory=dict)
    num_deaths: int = 0  # of poison

    def take(self, number: int) -> PaperLot:
        if len(self.taken) == self.room:
            raise NoRoom("all paper is written on")
        self.taken.add(number)
        return PaperLot(self, number)

    def alive(self) -> list[PaperEngine]:
        return [engine for _, engine in sorted(self.engines.items()) if engine.alive]


def paper_client(lot: Lot, policy: RestartPolicy, peers: Peers = ALONE) -> EngineClient:
    """One engine, not started yet."""
    options = EngineOptions(model_path="paper")
    return EngineClient(options, launcher=lot.launcher, restart=policy, peers=peers)


def paper_replicas(
    site: PaperSite, count: int, *, max_waiting: int = 1000, restart: RestartPolicy | None = None
) -> Replicas:
    """Not started yet."""
    policy = restart or RestartPolicy(max_failures=1000, first_delay=0, max_replays=1000)

    def make_engine(number: int, lot: Lot, peers: Peers) -> EngineClient:
        return paper_client(lot, policy, peers)

    return Replicas(make_engine, site, count, Admission(max_waiting), Router())


async def turns(count: int = 10) -> None:
    """Lets tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)
