"""Dispatch: which replica has a stream. New ones are given to one that serves, those of a replica
that can't go on with them to others, and those that wait at one to others with room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.replica import Replica
from minisgl.engine.router import Ask, NoReplica, Router

if TYPE_CHECKING:
    from minisgl.engine.stream import TokenStream


MOST_RELIEVED = 64  # requests at a time
MOST_KEPT = 8  # of them that are as well off where they are


class Dispatch:
    """The replicas that serve, and the streams that they are given."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._serving: dict[int, Replica] = {}
        self._is_relieving = False

    @property
    def serving(self) -> list[Replica]:
        """Those that serve and get new requests, in the order of their numbers."""
        return [one for _, one in sorted(self._serving.items())]

    def has(self, replica: Replica) -> bool:
        """Whether it is one of them."""
        return replica.number in self._serving

    def others_serve(self, replica: Replica) -> bool:
        """Whether another one takes what this replica would get."""
        return any(one is not replica for one in self._serving.values())

    def decisions(self, replica: Replica) -> dict[str, int]:
        """How often it was chosen, by reason."""
        decisions = self._router.decisions.items()
        return {why: count for (number, why), count in decisions if number == replica.number}

    def add(self, replica: Replica) -> None:
        """It serves from now on, beginning with the streams of its own that have waited for it."""
        info = replica.engine.info
        kept = info.kv_cache_tokens if info.prefix_cache else 0
        self._router.add(replica.number, cache_tokens=kept)
        self._serving[replica.number] = replica
        for stream in replica.engine.requests.streams:
            self._router.placed(stream.id, replica.number, stream.tokens)

    def remove(self, replica: Replica) -> bool:
        """It gets nothing more; its streams stay where they are. False where it did so before."""
        if self._serving.pop(replica.number, None) is None:
            return False
        self._router.remove(replica.number)
        return True

    def place(self, stream: TokenStream) -> bool:
        """Gives a new stream to a replica. False where none takes it."""
        return self._give(stream, set(), lambda requests: requests.adopt(stream))

    def move_all(self, replica: Replica) -> int:
        """Gives the streams of one that was removed to others, as far as there are any of its
        model; those that have got nothing yet to any. Returns how many.
        """
        if not self._serving:
            return 0
        streams = replica.engine.requests.streams
        return sum(not one.finished and self._move(one, replica) for one in streams)

    def note_end(self, stream: TokenStream) -> None:
        """A stream has all that it will get."""
        self._router.finished(stream.id, stream.tokens)

    def _move(self, stream: TokenStream, replica: Replica) -> bool:
        requests = replica.engine.requests
        exclude = {replica.number}
        if stream.received:
            exclude |= self._others_of_another_model(replica)
        return self._give(stream, exclude, lambda to: requests.hand_over(stream, to))

    def relieve(self, requests: LiveRequests) -> None:
        """Of the streams that wait at this engine those go to replicas with room that would begin
        sooner there. They have got nothing, or nothing since they were moved.
        """
        replica = next(
            (one for one in self._serving.values() if one.engine.requests is requests), None
        )
        if replica is None or self._is_relieving or not self._with_room(replica):
            return
        self._is_relieving = True  # an engine's answer may come at once
        try:
            kept = 0
            for stream in requests.waiting(MOST_RELIEVED):
                kept += not self._relieve(stream, replica)
                if kept == MOST_KEPT:
                    break
        finally:
            self._is_relieving = False

    def _relieve(self, stream: TokenStream, replica: Replica) -> bool:
        requests, room = replica.engine.requests, self._with_room(replica)
        exclude = self._unfit(stream) | (self._serving.keys() - room)
        if stream.received:
            exclude |= self._others_of_another_model(replica)
        is_full = len(requests) > replica.engine.info.max_running
        decision = self._router.rival(_ask(stream), exclude, is_full=is_full)
        if decision is None:
            return False
        to = self._serving[decision.replica].engine.requests
        if not requests.hand_over(stream, to):
            return False
        self._router.placed(stream.id, decision.replica, stream.tokens)
        return True

    def _with_room(self, replica: Replica) -> set[int]:
        """The other replicas at which nothing waits, and which may run more sequences."""
        found = set()
        for number, one in self._serving.items():
            requests = one.engine.requests
            is_idle = not requests.stats.num_waiting
            if one is not replica and is_idle and len(requests) < one.engine.info.max_running:
                found.add(number)
        return found

    def _others_of_another_model(self, replica: Replica) -> set[int]:
        others = self._serving.values()
        return {one.number for one in others if one.model is not replica.model}

    def _unfit(self, stream: TokenStream) -> set[int]:
        """The replicas for which it is too long."""
        needed = len(stream.request.prompt) + stream.request.params.max_tokens
        serving = self._serving.items()
        return {number for number, one in serving if needed > one.engine.info.max_model_len}

    def _give(
        self, stream: TokenStream, exclude: set[int], give: Callable[[LiveRequests], bool]
    ) -> bool:
        """Gives a stream to one of the replicas that aren't excluded. False where none takes it."""
        exclude |= self._unfit(stream)
        ask = _ask(stream)
        while True:
            worse = self._more_suspected(exclude) if stream.trial_tokens else set()
            try:
                number = self._router.choose(ask, exclude | worse).replica
            except NoReplica:
                return False
            if give(self._serving[number].engine.requests):
                self._router.placed(stream.id, number, ask.tokens)
                return True
            exclude.add(number)  # it can't be reached: the news of its end will follow

    def _more_suspected(self, exclude: set[int]) -> set[int]:
        """Those that have more suspects than another one that isn't excluded."""
        suspects = {
            number: one.engine.requests.num_suspects
            for number, one in self._serving.items()
            if number not in exclude
        }
        fewest = min(suspects.values(), default=0)
        return {number for number, count in suspects.items() if count > fewest}


def _ask(stream: TokenStream) -> Ask:
    request = stream.request
    return Ask(
        stream.id,
        stream.tokens,
        request.prefix_salt or b"",
        stream.session,
        request.params.max_tokens - len(stream.received),
    )
