"""Which replica serves a request: prefixes that it has against the work that it has.

A router decides and keeps accounts; it sends nothing and waits for nothing. Whoever sends tells it
what was placed where, how it gets on and when it ends.

The score of a replica is the tokens that have to be computed before the request's first one: those
of the prompt that aren't in its cache, and those that wait there already. What decodes there takes
a part of every step, and counts as RUNNING tokens per request and one for each CONTEXT of its
tokens. The least score wins; that is a request's estimated time to its first token, as Mooncake's
conductor minimises it (arXiv:2407.00079, section 6), with Preble's reason for it: what a hit saves
against what the load costs (arXiv:2407.00023, section 3). A request of a known session stays at its
replica until that is saturated: SATURATED tokens more to do than the one with the least.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Literal

from minisgl.config import Routing
from minisgl.engine.sent_prefixes import Keys, SentPrefixes

# Why a replica was chosen: it is the only one; it had the session; it had the most of the prompt
# for its load; it had the least to do; it was its turn.
Reason = Literal["only", "session", "prefix", "least", "round"]

RUNNING = 64
CONTEXT = 32
SATURATED = 8192
MAX_SESSIONS = 2**16  # those used last are remembered

logger = logging.getLogger(__name__)


class NoReplica(LookupError):  # noqa: N818
    """There is no replica to choose."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request as a router sees it. Only asks of the same `space` share prefixes: it names salt,
    adapter and key. `session` is whatever the client calls its conversation.
    """

    id: int
    tokens: Sequence[int]
    space: str | bytes = b""
    session: str | None = None
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """The replica, the tokens of the prompt that its cache should have, and why."""

    replica: int
    matched_tokens: int
    reason: Reason


@dataclass(slots=True, eq=False)
class _Replica:
    id: int
    queued: int = 0  # prompt tokens to be computed of requests that have no token yet
    running: int = 0  # requests that have one
    context: int = 0  # their tokens, prompts included
    turn: int = -1  # when it was chosen last

    @property
    def load(self) -> int:
        return self.queued + RUNNING * self.running + self.context // CONTEXT


@dataclass(slots=True)
class _Placed:
    space: str | bytes
    there: _Replica  # which may be removed by now
    keys: Keys
    num_tokens: int  # prompt and answer
    queued: int  # 0: it has a token


@dataclass(slots=True)
class _Asked:
    """The ask that choose() was called with last."""

    id: int = -1
    num_tokens: int = 0
    space: str | bytes = b""
    session: str | None = None
    keys: Keys = field(default_factory=list)


class Router:
    """Chooses among the replicas that were added. All of it belongs to one event loop."""

    def __init__(self, routing: Routing = "prefix") -> None:
        self.decisions: Counter[tuple[int, Reason]] = Counter()  # since the beginning
        self._routing = routing
        self._replicas: dict[int, _Replica] = {}
        self._sent = SentPrefixes()
        self._live: dict[int, _Placed] = {}
        # The one used last at the end. Some name replicas that are removed.
        self._sessions: dict[tuple[str | bytes, str], _Replica] = {}
        self._asked = _Asked()
        self._turn = 0

    def add(self, replica: int, *, cache_tokens: int) -> None:
        """A replica that may be chosen from now on; its cache, of so many tokens, is empty.
        ValueError where it is there already.
        """
        if replica in self._replicas:
            raise ValueError(f"replica {replica} is there already")
        self._replicas[replica] = _Replica(replica)
        self._sent.add(replica, cache_tokens)

    def remove(self, replica: int) -> None:
        """It is not chosen any more: dead, drained or removed. What it had is forgotten; its
        requests count nowhere until they are placed again. KeyError where it is not there.
        """
        del self._replicas[replica]
        self._sent.remove(replica)

    @property
    def replicas(self) -> list[int]:
        """Those that may be chosen."""
        return list(self._replicas)

    def load(self, replica: int) -> int:
        """What the replica has to do, in tokens; 0 where nothing is placed there."""
        return self._replicas[replica].load

    def cached_tokens(self, replica: int) -> int:
        """Tokens that its cache should have."""
        return self._sent.num_tokens(replica)

    def choose(self, ask: Ask, exclude: Container[int] = ()) -> Decision:
        """Where the request should run; `exclude` names replicas that can't have it. NoReplica
        where none is left. Accounts begin with placed(), which comes before the next choose().
        """
        among = [there for there in self._replicas.values() if there.id not in exclude]
        if not among:
            raise NoReplica("no replica can serve the request")
        keys = self._sent.keys(ask.space, ask.tokens)
        self._asked = _Asked(ask.id, len(ask.tokens), ask.space, ask.session, keys)
        chosen, reason = self._decide(ask, keys, among)
        decision = Decision(chosen.id, self._sent.matched(chosen.id, keys), reason)
        self._turn += 1
        chosen.turn = self._turn
        self.decisions[chosen.id, reason] += 1
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "request %d goes to replica %d (%s): %d of %d tokens cached; loads %s",
                ask.id,
                chosen.id,
                reason,
                decision.matched_tokens,
                len(ask.tokens),
                {there.id: there.load for there in among},
            )
        return decision

    def _decide(self, ask: Ask, keys: Keys, among: list[_Replica]) -> tuple[_Replica, Reason]:
        if len(among) == 1:
            return among[0], "only"
        if self._routing == "round":
            return min(among, key=lambda there: there.turn), "round"
        # Of equal ones the one that was chosen longest ago.
        least = min(among, key=lambda there: (there.load, there.turn))
        if self._routing == "least":
            return least, "least"
        if ask.session is not None:
            known = self._sessions.get((ask.space, ask.session))
            if known in among and known.load <= least.load + SATURATED:
                return known, "session"
        matched = {there: self._sent.matched(there.id, keys) for there in among}
        best = min(among, key=lambda there: (there.load - matched[there], there.turn))
        return (best, "prefix") if matched[best] else (least, "least")

    def placed(self, id: int, replica: int, tokens: Sequence[int]) -> None:
        """The request runs there, with these tokens as its prompt (those of its answer, too, where
        it ran elsewhere before). ValueError where the request or the replica is not known.
        """
        there = self._replicas.get(replica)
        if there is None:
            raise ValueError(f"request {id} was placed at replica {replica}, which is not there")
        asked, before = self._asked, self._live.pop(id, None)
        if asked.id == id:
            space = asked.space
            keys = asked.keys if asked.num_tokens == len(tokens) else self._sent.keys(space, tokens)
            if asked.session is not None:
                self._stick((space, asked.session), there)
        elif before is not None:
            space, keys = before.space, self._sent.keys(before.space, tokens, before.keys)
        else:
            raise ValueError(f"request {id} was placed, but no replica was chosen for it")
        if before is not None:
            _release(before)
        queued = max(1, len(tokens) - self._sent.matched(replica, keys))
        there.queued += queued
        self._sent.insert(replica, keys)
        self._live[id] = _Placed(space, there, keys, len(tokens), queued)

    def progressed(self, id: int, new_tokens: int) -> None:
        """The request got tokens of its answer. Unknown ids are ignored."""
        placed = self._live.get(id)
        if placed is None or new_tokens == 0:
            return
        there = placed.there
        placed.num_tokens += new_tokens
        if placed.queued:
            there.queued -= placed.queued
            there.running += 1
            there.context += placed.num_tokens
            placed.queued = 0
        else:
            there.context += new_tokens

    def finished(self, id: int, tokens: Sequence[int]) -> None:
        """The request has ended, with these tokens, prompt and answer. Unknown ids are ignored."""
        placed = self._live.pop(id, None)
        if placed is None:
            return
        _release(placed)
        there = placed.there
        if self._replicas.get(there.id) is there:
            self._sent.insert(there.id, self._sent.keys(placed.space, tokens, placed.keys))

    def _stick(self, session: tuple[str | bytes, str], there: _Replica) -> None:
        self._sessions.pop(session, None)
        self._sessions[session] = there
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]


def _release(placed: _Placed) -> None:
    if placed.queued:
        placed.there.queued -= placed.queued
    else:
        placed.there.running -= 1
        placed.there.context -= placed.num_tokens
