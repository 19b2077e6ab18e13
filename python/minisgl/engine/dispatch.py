"""Dispatch: which replica has a stream. New ones are given to one that serves, and those of a
replica that can't go on with them to others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.replica import Replica
from minisgl.engine.router import Ask, NoReplica, Router

if TYPE_CHECKING:
    from minisgl.engine.stream import TokenStream


class Dispatch:
    """The replicas that serve, and the streams that they are given."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._serving: dict[int, Replica] = {}

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
            others = self._serving.values()
            exclude |= {one.number for one in others if one.model is not replica.model}
        return self._give(stream, exclude, lambda to: requests.hand_over(stream, to))

    def _give(
        self, stream: TokenStream, exclude: set[int], give: Callable[[LiveRequests], bool]
    ) -> bool:
        """Gives a stream to one of the replicas that aren't excluded. False where none takes it."""
        request = stream.request
        tokens = stream.tokens
        needed = len(request.prompt) + request.params.max_tokens
        exclude |= {
            number
            for number, one in self._serving.items()
            if needed > one.engine.info.max_model_len
        }
        ask = Ask(
            stream.id,
            tokens,
            request.prefix_salt or b"",
            stream.session,
            request.params.max_tokens - len(stream.received),
        )
        while True:
            worse = self._more_suspected(exclude) if stream.trial_tokens else set()
            try:
                number = self._router.choose(ask, exclude | worse).replica
            except NoReplica:
                return False
            if give(self._serving[number].engine.requests):
                self._router.placed(stream.id, number, tokens)
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
