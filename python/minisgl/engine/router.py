"""Which replica serves a request: prefixes that it has against the work that it has.

A router decides and keeps accounts; it sends nothing and waits for nothing. Whoever sends tells it
what was placed where, how it gets on and when it ends.

A request takes a part of all steps until it ends, and weighs RUNNING tokens and one for each
CONTEXT of its prompt; of its answer only every GROWN tokens count so. It weighs the same while its
prompt waits and after that. If it didn't, a replica that is ahead with its prompts would get more
than another one of equal requests that come at once, and keep them until they end. As it is these
divide evenly, whatever the order of their first tokens and ends. SGLang's router, too, counts a
request from its arrival to its end as one; vLLM's counts one that waits as four that run.

A replica's load is this weight and, of each prompt that waits to be computed, what it has beyond
SHORT tokens, as a request behind it waits for those. Short ones decide between replicas whose
requests weigh the same: all of them together count less than one request.

From the load what the replica has of the prompt is taken off, HIT times, and the least wins.
Mooncake's conductor takes it off once, as it minimises the time to the first token
(arXiv:2407.00079). But a prefix that is computed where it wasn't takes the place of
others there, a cost that Preble's scheduler counts, too (arXiv:2407.00023): so a hit is worth more
than its time. llm-d's default profile weighs matches 3 to 2 against a queue. bench/fleet.py is what
the numbers here were chosen by.

A request of a known session stays at its replica, unless that has less of the prompt than the one
of the rule above, or is saturated: SATURATED tokens more to do than the one with the least, which
all prompts that wait count for. SGLang's cache-aware policy is as sticky with prefixes, until
requests are out of balance by 64 and by a factor of 1.5.

A request that waits at its replica can be moved to one that would begin sooner (rival()): where
there is as much more to do as saturates one, or, as all sequences that may run are taken, another
one has to end first. What its own prompt adds to the load and to the prefixes there doesn't count.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from minisgl._native import SentPrefixes
from minisgl.config import Routing

# Why a replica was chosen: it is the only one; it had the session; it had the most of the prompt
# for its load; it had the least to do; it was its turn; the request waited at another one.
Reason = Literal["only", "session", "prefix", "least", "round", "relief"]

RUNNING = 256
CONTEXT = 8
GROWN = 2048
SHORT = 1024
SHORT_LOAD, HALF_OF_IT = RUNNING // 2, 2048  # short prompts' share; the tokens that make half of it
HIT = 2.5
SATURATED = 8192
MAX_SESSIONS = 2**16  # those used last are remembered

logger = logging.getLogger(__name__)


class NoReplica(LookupError):  # noqa: N818
    """There is no replica to choose."""


class Ask(msgspec.Struct, frozen=True):
    """A request as a router sees it. Only asks of the same `space` share prefixes: it names salt,
    adapter and key. `session` is whatever the client calls its conversation.
    """

    id: int
    tokens: Sequence[int]
    space: str | bytes = b""
    session: str | None = None
    max_tokens: int = 0


class Decision(msgspec.Struct, frozen=True):
    """The replica, the tokens of the prompt that its cache should have, and why."""

    replica: int
    matched_tokens: int
    reason: Reason


@dataclass(slots=True, eq=False)
class _Replica:
    id: int
    slot: int  # its number in the native table
    weight: int = 0  # of its requests
    queued: int = 0  # prompt tokens to be computed of those that have no token yet
    excess: int = 0  # of these, what is beyond SHORT

    @property
    def load(self) -> int:
        """What it is chosen by."""
        short = self.queued - self.excess
        return self.weight + self.excess + SHORT_LOAD * short // (short + HALF_OF_IT)

    @property
    def work(self) -> int:
        """Tokens to do, by which it is saturated."""
        return self.weight + self.queued


class _Placed(msgspec.Struct):
    space: str | bytes
    there: _Replica  # which may be removed by now
    keys: bytes  # of the prompt's blocks
    num_tokens: int  # prompt and answer
    weight: int
    grows_at: int  # so many tokens
    queued: int  # 0: it has a token
    excess: int = 0


class Router:
    """Chooses among the replicas that were added. All of it belongs to one event loop."""

    def __init__(self, routing: Routing = "prefix") -> None:
        self.decisions: Counter[tuple[int, Reason]] = Counter()  # since the beginning
        self._routing = routing
        self._replicas: dict[int, _Replica] = {}  # the one chosen last at the end
        self._slots: list[_Replica | None] = []
        self._sent = SentPrefixes()
        self._changed: set[_Replica] = set()  # those whose load the table doesn't know
        self._live: dict[int, _Placed] = {}
        # The one used last at the end. Some name replicas that are removed.
        self._sessions: dict[tuple[str | bytes, str], _Replica] = {}
        self._asked: tuple[Ask, bytes] | None = None  # the ask of the last choose(), its keys

    def add(self, replica: int, *, cache_tokens: int) -> None:
        """A replica that may be chosen from now on; its cache, of so many tokens, is empty.
        ValueError where it is there already.
        """
        if replica in self._replicas:
            raise ValueError(f"replica {replica} is there already")
        if None not in self._slots:
            self._slots.append(None)
        slot = self._slots.index(None)
        self._sent.add(slot, cache_tokens)
        self._slots[slot] = self._replicas[replica] = _Replica(replica, slot)

    def remove(self, replica: int) -> None:
        """It is not chosen any more: dead, drained or removed. What it had is forgotten; its
        requests count nowhere until they are placed again. KeyError where it is not there.
        """
        there = self._replicas.pop(replica)
        self._sent.remove(there.slot)
        self._slots[there.slot] = None

    @property
    def replicas(self) -> list[int]:
        """Those that may be chosen."""
        return list(self._replicas)

    def load(self, replica: int) -> int:
        """What speaks against the replica, in tokens; 0 where nothing is placed there."""
        return self._replicas[replica].load

    def cached_tokens(self, replica: int) -> int:
        """Tokens that its cache should have."""
        return self._sent.num_tokens(self._replicas[replica].slot)

    def choose(self, ask: Ask, exclude: Collection[int] = ()) -> Decision:
        """Where the request should run; `exclude` names replicas that can't have it. NoReplica
        where none is left. Accounts begin with placed(), which comes before the next choose().
        """
        keys = self._sent.keys(ask.space, ask.tokens)
        return self._choose(ask, keys, *self._decide(ask, keys, exclude))

    def rival(
        self, ask: Ask, exclude: Collection[int] = (), *, is_full: bool = False
    ) -> Decision | None:
        """Where a request that was placed, and waits, would begin sooner; None: nowhere. `is_full`:
        where it waits none can begin until another one ends. placed() is next, if it is moved.
        """
        placed = self._live[ask.id]
        here, keys = placed.there, placed.keys
        try:
            there, matched, _ = self._decide(ask, keys, {*exclude, here.id})
        except NoReplica:
            return None
        own = placed.queued + placed.weight
        ahead = here.work - own - there.work - (-SATURATED if is_full else SATURATED)
        lost = placed.num_tokens - placed.queued - matched if self._routing == "prefix" else 0
        if ahead <= HIT * lost:
            return None
        return self._choose(ask, keys, there, matched, "relief")

    def _choose(
        self, ask: Ask, keys: bytes, there: _Replica, matched: int, reason: Reason
    ) -> Decision:
        self._asked = ask, keys
        self._replicas[there.id] = self._replicas.pop(there.id)
        self._sent.take_turn(there.slot)
        self.decisions[there.id, reason] += 1
        if logger.isEnabledFor(logging.DEBUG):
            self._explain(ask, there, matched, reason)
        return Decision(there.id, matched, reason)

    def placed(self, id: int, replica: int, tokens: Sequence[int]) -> None:
        """The request runs there, with these tokens as its prompt (those of its answer, too, where
        it ran elsewhere before). ValueError where the request or the replica is not known.
        """
        there = self._replicas.get(replica)
        if there is None:
            raise ValueError(f"request {id} was placed at replica {replica}, which is not there")
        before = self._live.get(id)
        if self._asked is not None and self._asked[0].id == id:
            ask, keys = self._asked
            space = ask.space
            if len(ask.tokens) != len(tokens):
                keys = self._sent.keys(space, tokens)
            if ask.session is not None:
                self._stick((space, ask.session), there)
        elif before is not None:
            space = before.space
            keys = self._sent.keys(space, tokens, before.keys)
        else:
            raise ValueError(f"request {id} was placed, but no replica was chosen for it")
        if before is not None:
            self._count(before, -1)
        count = len(tokens)
        queued = max(1, count - self._sent.insert(there.slot, keys))
        self._live[id] = now = _Placed(
            space, there, keys, count, RUNNING + count // CONTEXT, count + GROWN, queued
        )
        if queued > SHORT:
            now.excess = queued - SHORT
        self._count(now, 1)

    def progressed(self, id: int, new_tokens: int) -> None:
        """The request got tokens of its answer. Unknown ids are ignored."""
        placed = self._live.get(id)
        if placed is None or new_tokens == 0:
            return
        placed.num_tokens += new_tokens
        if placed.queued == 0 and placed.num_tokens < placed.grows_at:
            return
        self._count(placed, -1)
        placed.queued = placed.excess = 0
        while placed.num_tokens >= placed.grows_at:
            placed.weight += GROWN // CONTEXT
            placed.grows_at += GROWN
        self._count(placed, 1)

    def finished(self, id: int, tokens: Sequence[int]) -> None:
        """The request has ended, with these tokens, prompt and answer. Unknown ids are ignored."""
        placed = self._live.pop(id, None)
        if placed is None:
            return
        self._count(placed, -1)
        there = placed.there
        if self._slots[there.slot] is there:
            self._sent.insert(there.slot, self._sent.keys(placed.space, tokens, placed.keys))

    def _decide(
        self, ask: Ask, keys: bytes, exclude: Collection[int]
    ) -> tuple[_Replica, int, Reason]:
        """The replica, the tokens of the prompt that it has, and why."""
        for changed in self._changed:
            if self._slots[changed.slot] is changed:
                self._sent.set_load(changed.slot, int(changed.load / HIT))
        self._changed.clear()
        excluded = [self._replicas[id].slot for id in exclude if id in self._replicas]
        wanted = keys if self._routing == "prefix" else b""
        least, best, matched, count = self._sent.choose(wanted, excluded)
        if least < 0:
            raise NoReplica("no replica can serve the request")
        least_loaded, best_match = self._at(least), self._at(best)
        if count == 1:
            return best_match, self._sent.matched(best, keys), "only"
        if self._routing == "prefix":
            known = self._session(ask, exclude)
            if known is not None and known.work <= least_loaded.work + SATURATED:
                has = self._sent.matched(known.slot, keys)
                if has >= matched:
                    return known, has, "session"
            if matched:
                return best_match, matched, "prefix"
        if self._routing == "round":
            turn = next(there for id, there in self._replicas.items() if id not in exclude)
            return turn, self._sent.matched(turn.slot, keys), "round"
        return least_loaded, self._sent.matched(least, keys), "least"

    def _at(self, slot: int) -> _Replica:
        there = self._slots[slot]
        assert there is not None, f"the table chose slot {slot}, which is empty"
        return there

    def _session(self, ask: Ask, exclude: Collection[int]) -> _Replica | None:
        if ask.session is None:
            return None
        known = self._sessions.get((ask.space, ask.session))
        if known is None or self._slots[known.slot] is not known or known.id in exclude:
            return None
        return known

    def _stick(self, session: tuple[str | bytes, str], there: _Replica) -> None:
        self._sessions.pop(session, None)
        self._sessions[session] = there
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _count(self, placed: _Placed, sign: int) -> None:
        there = placed.there
        there.weight += sign * placed.weight
        there.queued += sign * placed.queued
        there.excess += sign * placed.excess
        self._changed.add(there)

    def _explain(self, ask: Ask, there: _Replica, matched: int, reason: Reason) -> None:
        logger.debug(
            "request %d goes to replica %d (%s): %d of %d tokens cached; loads %s",
            ask.id,
            there.id,
            reason,
            matched,
            len(ask.tokens),
            {replica: self.load(replica) for replica in sorted(self._replicas)},
        )
