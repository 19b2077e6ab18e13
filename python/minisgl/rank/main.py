"""The program of an engine rank: one process with the native engine and an asyncio loop around it.

On rank 0 the loop hands messages to the engine and, at each wake of its eventfd, everything
that the engine has made to the server in one message. The other ranks only follow rank 0, in native
code. Nothing here waits for a step or looks into tokens.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import msgspec

from minisgl.ipc.child import ParentLink, run_child
from minisgl.ipc.messages import (
    ALIVE_SECONDS,
    Abort,
    BlockEvent,
    EngineOptions,
    EngineStats,
    Failed,
    LoadAdapter,
    Output,
    Ready,
    Shutdown,
    Start,
    StepOutputs,
    Submit,
    ToRank,
    UnloadAdapter,
    to_rank_decoder,
)
from minisgl.rank.adapters import RankAdapters
from minisgl.rank.grammars import GrammarSupport
from minisgl.rank.load import Life, Outbox, StartError, load_rank

if TYPE_CHECKING:
    from minisgl._native import Engine, Follower

# An engine thread that dies with nothing to report is noticed after that.
FAILURE_CHECK_SECONDS = 1.0

logger = logging.getLogger(__name__)


async def main(link: ParentLink[ToRank]) -> int:
    """Loads, reports ready, serves until told to end. Status 0, or 1 after a Failed message."""
    start = await link.inbox.get()
    if not isinstance(start, Start):
        raise TypeError(f"expected the start first, got {type(start).__name__}")
    life = Life()
    pulse = asyncio.create_task(_show_life(link.outbox, life))
    try:
        loaded = await load_rank(start, link.outbox, life, link.name)
        link.outbox.put_nowait(Ready(loaded.info(), link.name))
        if start.place.rank == 0:
            failure = await Rank(loaded.engine, link, start.options).serve()
        else:
            failure = await follow(loaded.engine, link)
    except StartError as error:
        failure = Failed(str(error), error.blamed_rank)
    finally:
        pulse.cancel()
    if failure is not None:
        link.outbox.put_nowait(failure)
        return 1
    return 0


async def _show_life(outbox: Outbox, life: Life) -> None:
    while True:
        outbox.put_nowait(life.sign())
        await asyncio.sleep(ALIVE_SECONDS)


async def follow(follower: Follower, link: ParentLink[ToRank]) -> Failed | None:
    """Until rank 0 has said that it is over (returns None) or a failure. The server's Shutdown is
    for rank 0 to pass on.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(follower.event_fd(), ended.set)
    adapters = asyncio.create_task(_hear_of_adapters(RankAdapters(follower, link.outbox), link))
    try:
        await ended.wait()
    finally:
        adapters.cancel()
        loop.remove_reader(follower.event_fd())
    return failure_of(follower)


async def _hear_of_adapters(adapters: RankAdapters, link: ParentLink[ToRank]) -> None:
    while True:
        message = await link.inbox.get()
        if isinstance(message, LoadAdapter | UnloadAdapter):
            adapters.obey(message)


def failure_of(rank: Engine | Follower) -> Failed | None:
    """What the native thread died of, if it did."""
    sentence = rank.failure()
    return Failed(sentence, rank.blamed_rank()) if sentence else None


class Rank:
    """The loop around a started engine."""

    def __init__(self, engine: Engine, link: ParentLink[ToRank], options: EngineOptions) -> None:
        self._engine = engine
        self._link = link
        self._report_blocks = options.report_blocks
        self._grammars = GrammarSupport(engine, options.model_path)
        self._adapters = RankAdapters(engine, link.outbox)
        self._failed = asyncio.Event()
        self._broken = ""  # why outputs can't be forwarded any more

    async def serve(self) -> Failed | None:
        """Until Shutdown (returns None) or a failure."""
        loop = asyncio.get_running_loop()
        event_fd = self._engine.event_fd()
        loop.add_reader(event_fd, self._forward_outputs)
        tasks = [
            asyncio.create_task(self._obey()),
            asyncio.create_task(self._failed.wait()),
            asyncio.create_task(self._watch_engine()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            loop.remove_reader(event_fd)
        self._forward_outputs()
        failure = Failed(self._broken) if self._broken else failure_of(self._engine)
        self._engine.stop()
        return failure

    async def _obey(self) -> None:
        """Does what the server says until it says Shutdown."""
        while True:
            message = await self._link.inbox.get()
            if isinstance(message, Submit):
                self._submit(message)
            elif isinstance(message, Abort):
                for request_id in message.ids:
                    self._engine.abort(request_id)
            elif isinstance(message, LoadAdapter | UnloadAdapter):
                self._adapters.obey(message)
            elif isinstance(message, Shutdown):
                return

    def _submit(self, request: Submit) -> None:
        if request.params.grammar is not None:
            self._grammars.need()
        try:
            self._engine.submit(request.engine_fields())
        except Exception as error:  # whatever is wrong with one request must not end the others
            logger.exception("request %d was refused by the engine's binding", request.id)
            self._link.outbox.put_nowait(
                StepOutputs(outputs=[refusal(request.id, str(error))], stats=self._stats())
            )

    def _forward_outputs(self) -> None:
        if self._broken:
            return
        try:
            outputs = self._engine.take_outputs()
            if outputs:
                # Encoded as they are: the tuples have the layout of Output.
                self._link.outbox.put_nowait(
                    StepOutputs(
                        outputs=cast("list[Output]", outputs),
                        stats=self._stats(),
                        block_events=self._block_events(),
                    )
                )
        except Exception as error:
            # The tokens are gone: later ones must not follow the gap. The server replays.
            logger.exception("unexpected error while forwarding outputs")
            self._broken = f"unexpected error while forwarding outputs: {error!r}"[:1000]
            asyncio.get_running_loop().remove_reader(self._engine.event_fd())
        if self._broken or self._engine.failure():
            self._failed.set()

    def _block_events(self) -> list[BlockEvent]:
        if not self._report_blocks:
            return []
        return cast("list[BlockEvent]", self._engine.take_block_events())  # tuples, too

    def _stats(self) -> EngineStats:
        return cast(EngineStats, self._engine.stats())  # a dict, encoded like the struct

    async def _watch_engine(self) -> None:
        while not self._engine.failure():  # noqa: ASYNC110 - a native thread sets no asyncio.Event
            await asyncio.sleep(FAILURE_CHECK_SECONDS)


def refusal(request_id: int, reason: str) -> Output:
    """The answer to a request that never got into the engine."""
    return Output(
        request_id, [], "error", "invalid_request", reason[:1000] or "the request is malformed"
    )


def answer_malformed(outbox: Outbox) -> Callable[[bytes], None]:
    """Replies to a malformed message if it can be seen which request it was, so that its stream
    doesn't wait for ever.
    """

    def reply(data: bytes) -> None:
        try:
            content = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        request_id = content.get("id") if isinstance(content, dict) else None
        if isinstance(request_id, int) and 0 <= request_id < 2**63:
            output = refusal(request_id, "the request has a value out of range")
            outbox.put_nowait(StepOutputs(outputs=[output], stats=EngineStats()))

    return reply


if __name__ == "__main__":
    run_child(to_rank_decoder, main, answer_malformed)
