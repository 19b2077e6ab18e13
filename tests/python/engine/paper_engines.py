"""Replicas whose engines have no process: they make a token when they are told to, and die when
they are told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minisgl.engine.admission import Admission
from minisgl.engine.api import ReplicaRefused
from minisgl.engine.changes import Changes
from minisgl.engine.client import EngineClient
from minisgl.engine.launcher import MakeLauncher, RankEvents
from minisgl.engine.peers import ALONE, Peers
from minisgl.engine.placement import NoRoom
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.router import Router
from minisgl.engine.served_model import ServedModel
from minisgl.engine.site import Lot
from minisgl.ipc.messages import (
    Abort,
    Alive,
    EngineInfo,
    EngineOptions,
    EngineStats,
    NamedModel,
    Output,
    Place,
    Ready,
    StepOutputs,
    Submit,
)

VOCABULARY = 1000
MAX_RUNNING = 4


def next_token(tokens: Sequence[int], model: str = "paper") -> int:
    """What follows these tokens: all of them, how many they are, and the model decide."""
    return (sum(tokens) * 31 + len(tokens) * len(model)) % VOCABULARY


def answer(prompt: list[int], count: int, model: str = "paper") -> list[int]:
    """What an undisturbed engine says."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, model))
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
        if self._site.broken or options.model_path in self._site.bad_models:
            raise OSError("the paper is wet")
        self._model = options.model_path
        if self._number in self._site.held:
            self._site.engines[self._number] = self
            self.events.message(0, Alive())
            return
        self.alive = True
        self._site.engines[self._number] = self
        info = EngineInfo(
            vocab_size=VOCABULARY,
            max_model_len=10 if self._model == "short" else self._site.max_model_len,
            max_running=MAX_RUNNING,
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
        elif isinstance(message, Abort):  # heard of in another turn
            asyncio.get_running_loop().call_soon(self._end, message.ids)
        return True

    def _end(self, ids: list[int]) -> None:
        for request_id in ids:
            if self.alive and self.requests.pop(request_id, None):
                self.say(Output(request_id, [], "abort"))

    def step(self) -> None:
        """A token for each request that runs, unless one of them is poison."""
        if self.alive and any(self._is_poisoned(request) for request in self.requests.values()):
            self._site.num_deaths += 1
            self.die()
            return
        for request in list(self.requests.values())[:MAX_RUNNING]:
            tokens = self._tokens[request.id]
            tokens.append(next_token(tokens, self._model))
            generated = len(tokens) - len(request.prompt) + request.num_resumed
            if request.params.pooling is not None:  # a step for each token of the prompt
                if generated == len(request.prompt):
                    del self.requests[request.id]
                    made = Output(request.id, [], "stop", embedding=bytes(request.prompt))
                    self.say(made)
                continue
            last = generated == request.params.max_tokens
            if last:
                del self.requests[request.id]
            self.say(Output(request.id, [tokens[-1]], "length" if last else ""))

    def _is_poisoned(self, request: Submit) -> bool:
        poison = self._site.poison.get(request.id)
        return poison is not None and poison(request, len(self._tokens[request.id]))

    def say(self, output: Output) -> None:
        waiting = max(0, len(self.requests) - MAX_RUNNING)
        self.events.message(0, StepOutputs([output], EngineStats(num_waiting=waiting)))

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

    def launcher(self, model: ServedModel) -> MakeLauncher:
        return lambda events: PaperEngine(events, self.site, self.number)

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
    bad_models: set[str] = field(default_factory=set)  # paths of which none starts
    held: set[int] = field(default_factory=set)  # replicas that don't get ready
    short_lived: bool = False  # each dies as soon as it is ready
    engines: dict[int, PaperEngine] = field(default_factory=dict)  # the latest of each replica
    taken: set[int] = field(default_factory=set)
    # By request: whether it kills an engine that has it with so many tokens, prompt included.
    poison: dict[int, Callable[[Submit, int], bool]] = field(default_factory=dict)
    num_deaths: int = 0  # of poison

    def take(self, number: int, *, at_once: bool = False) -> PaperLot:
        if len(self.taken) == self.room:
            raise NoRoom("all paper is written on")
        self.taken.add(number)
        return PaperLot(self, number)

    def alive(self) -> list[PaperEngine]:
        return [engine for _, engine in sorted(self.engines.items()) if engine.alive]


PAPER = ServedModel("paper", "paper")


def paper_client(
    lot: Lot, policy: RestartPolicy, peers: Peers = ALONE, model: ServedModel = PAPER
) -> EngineClient:
    """One engine, not started yet."""
    options = EngineOptions(model_path=model.path)
    return EngineClient(options, launcher=lot.launcher(model), restart=policy, peers=peers)


def paper_replicas(
    site: PaperSite, count: int, *, max_waiting: int = 1000, restart: RestartPolicy | None = None
) -> Replicas:
    """Not started yet."""
    policy = restart or RestartPolicy(max_failures=1000, first_delay=0, max_replays=1000)

    def make_engine(number: int, lot: Lot, peers: Peers, model: ServedModel) -> EngineClient:
        return paper_client(lot, policy, peers, model)

    return Replicas(make_engine, site, count, Admission(max_waiting), Router(), PAPER)


class PaperSuccessors:
    """Models by their paths: all but "none" are there."""

    def __init__(self) -> None:
        self.adopted: list[ServedModel] = []
        self.found = asyncio.Event()  # the search takes until it is set
        self.found.set()

    async def find(self, named: NamedModel, say: Callable[[str], None]) -> ServedModel:
        await self.found.wait()
        if named.model == "none":
            raise ReplicaRefused("there is no model at 'none'")
        return ServedModel(str(named.model), str(named.model), named.revision or "", named)

    async def adopt(self, model: ServedModel) -> None:
        self.adopted.append(model)


def paper_changes(replicas: Replicas) -> Changes:
    return Changes(replicas, PaperSuccessors())


async def turns(count: int = 10) -> None:
    """Lets tasks run."""
    for _ in range(count):
        await asyncio.sleep(0)
