"""Tokenizer processes as the server sees them: each is started, watched, restarted and ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.children import python_command
from minisgl.ipc.messages import Failed, Shutdown
from minisgl.ipc.process import ChildProcess, describe_exit
from minisgl.tasks import background
from minisgl.text.errors import WorkerLost
from minisgl.text.messages import (
    Encoded,
    FromText,
    Refused,
    Text,
    TextOptions,
    TextReady,
    from_text_decoder,
)

LAST_WORDS_SECONDS = 0.5  # for the reason that a process gave before it ended

logger = logging.getLogger(__name__)

Process = ChildProcess[FromText]


class WorkerStartError(Exception):
    """The process could not start. The sentence is meant for the screen."""


@dataclass(frozen=True)
class WorkerPolicy:
    """When a tokenizer process is given up, and when the next one is started."""

    first_delay: float = 0.5  # seconds before a start, doubled at each failure
    max_delay: float = 10.0
    healthy_seconds: float = 60.0  # a process that served that long starts the delays anew
    load_seconds: float = 300.0  # for a start, with the tokenizer's loading
    tick_seconds: float = 1.0
    silent_ticks: int = 7  # without a word from a process that has spoken, and it is lost
    mute_ticks: int = 30  # without a first word
    stuck_ticks: int = 120  # without an answer, though there is something to answer
    reopen_seconds: float = 30.0  # how long a stream or a text waits for the next process


class WorkerClient:
    """One tokenizer process. Belongs to the event loop that called start().

    A process that ends is replaced, and so is one that is stopped or stuck: it says every second
    that it is alive.
    """

    def __init__(
        self,
        name: str,
        process_name: str,
        options: TextOptions,
        *,
        command: Sequence[str] | None = None,
        policy: WorkerPolicy | None = None,
    ) -> None:
        """`name` is what sentences call the process, `process_name` what the system calls it."""
        self.policy = policy or WorkerPolicy()
        self.life = 0  # how many processes have served so far
        self._name = name
        self._process_name = process_name
        self._options = options
        self._command = command or python_command("minisgl.text.worker_process")
        self._process: Process | None = None
        self._waiting: dict[int, asyncio.Future[Encoded | Text]] = {}
        self._serving = False
        self._closed = False
        self._news = asyncio.Event()  # set for the next process, or when there will be none
        self._silence = 0  # ticks since the last word
        self._unanswered = 0  # ticks since the last answer, while there is something to answer
        self._delay = self.policy.first_delay
        self._supervisor: asyncio.Task[None] | None = None

    # --- questions

    @property
    def num_waiting(self) -> int:
        """Questions without an answer yet."""
        return len(self._waiting)

    @property
    def serving(self) -> bool:
        """Whether it is there to be asked."""
        return self._serving

    async def ask(self, message_id: int, message: Any) -> Encoded | Text:
        """Sends a message and waits for its answer. ValueError or WorkerLost."""
        answer: asyncio.Future[Encoded | Text] = asyncio.get_running_loop().create_future()
        self._waiting[message_id] = answer
        try:
            self.tell(message)
            return await answer
        finally:
            del self._waiting[message_id]

    def tell(self, message: Any) -> None:
        """Sends a message that has no answer. WorkerLost when the process isn't there."""
        if self._serving and self._process is not None:
            if self._process.send(message):
                return
            self._serving = False  # it takes nothing any more: the supervisor sees its end
            self._process.kill()
        raise WorkerLost(f"{self._name} is restarting; try again later")

    async def next_life(self, after: int) -> int:
        """The `life` of the process that serves, once it is later than `after`. WorkerLost when
        there will be none.
        """
        while not self._serving or self.life <= after:
            if self._closed:
                raise WorkerLost(f"{self._name} has been closed")
            await self._news.wait()
        return self.life

    async def until_serving(self) -> None:
        """Until it is there to be asked. WorkerLost when that takes too long, or never comes."""
        if not self._serving:
            seconds = self.policy.reopen_seconds
            try:
                await asyncio.wait_for(self.next_life(self.life), seconds)
            except asyncio.TimeoutError:
                raise WorkerLost(f"{self._name} didn't come back within {seconds:g} s") from None

    # --- life

    async def start(self) -> None:
        """Starts the process and waits until it has loaded. Raises WorkerStartError."""
        await self._start_process()
        self._supervisor = background(
            self._supervise(), f"the supervisor of {self._name}", lambda reason: self._end()
        )

    async def close(self) -> None:
        """Ends the process. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        if self._process is not None:
            await self._process.stop(Shutdown() if self._serving else None)
        self._end()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._supervisor is not None:
            self._supervisor.cancel()
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._discard()
        self._tell_news()

    async def _supervise(self) -> None:
        """Keeps a process serving. Whatever goes wrong on the way is tried again."""
        while True:
            try:
                reason = await self._live()
            except WorkerStartError as error:
                reason = str(error)
            except Exception as error:  # which nobody foresaw: it must not end the supervisor
                logger.exception("%s can't be kept serving", self._name)
                reason = f"{self._name} can't be kept serving: {error}"
            logger.error("%s; starting it again in %g s", reason, self._delay)
            await asyncio.sleep(self._delay)
            self._delay = min(2 * self._delay, self.policy.max_delay)

    async def _live(self) -> str:
        """Starts a process where there is none, and waits until it is lost. Returns a sentence
        about how that came. Raises WorkerStartError.
        """
        if self._process is None:
            await self._start_process()
        began = time.monotonic()
        reason = await self._until_lost()
        self._discard()
        if time.monotonic() - began >= self.policy.healthy_seconds:
            self._delay = self.policy.first_delay
        return reason

    async def _start_process(self) -> None:
        try:
            self._process = await Process.spawn(
                self._command, self._process_name, from_text_decoder
            )
        except OSError as error:
            raise WorkerStartError(f"{self._name} can't be started: {error}") from error
        try:
            await self._load(self._process)
        except BaseException:
            self._discard()
            raise
        self.life += 1
        self._serving = True
        self._tell_news()

    async def _load(self, process: Process) -> None:
        ready = asyncio.create_task(self._until_ready(process))
        ended = asyncio.create_task(process.wait())
        silent = asyncio.create_task(self._until_silent(self.policy.mute_ticks))
        tasks = (ready, ended, silent)
        limit = self.policy.load_seconds
        try:
            await asyncio.wait(tasks, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not ready.done():
                await asyncio.wait({ready}, timeout=LAST_WORDS_SECONDS)
            if ready.done():
                ready.result()
            elif ended.done():
                raise WorkerStartError(f"{self._name} {describe_exit(ended.result())} at its start")
            elif silent.done():
                raise WorkerStartError(f"{silent.result()} at its start")
            else:
                raise WorkerStartError(f"{self._name} had not loaded after {limit:g} s")
        finally:
            for task in tasks:
                task.cancel()

    async def _until_ready(self, process: Process) -> None:
        await process.configure(self._options)
        while True:
            message = await self._receive(process)
            if isinstance(message, Failed):
                raise WorkerStartError(message.message)
            if isinstance(message, TextReady):
                return

    async def _until_lost(self) -> str:
        process = self._process
        assert process is not None
        reader = asyncio.create_task(self._read(process))
        ended = asyncio.create_task(process.wait())
        silent = asyncio.create_task(self._until_silent(self.policy.silent_ticks))
        tasks = (reader, ended, silent)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return f"{self._name} {describe_exit(ended.result())}"
            if silent.done():
                return silent.result()
            return f"{self._name} can't be heard any more: {reader.exception()!r}"
        finally:
            for task in tasks:
                task.cancel()

    async def _until_silent(self, limit: int) -> str:
        """Until nothing has been heard for so many ticks, or nothing was answered for even longer;
        a sentence about it. Ticks of this process are counted, not the time: where it was stopped,
        too, nobody is late.
        """
        tick, stuck = self.policy.tick_seconds, self.policy.stuck_ticks
        self._silence = self._unanswered = 0
        while self._silence <= limit:
            await asyncio.sleep(tick)
            self._silence += 1
            self._unanswered = self._unanswered + 1 if self._waiting else 0
            if self._unanswered > stuck:
                return f"{self._name} answered nothing for {stuck * tick:g} s"
        return f"{self._name} gave no sign of life for {limit * tick:g} s"

    async def _receive(self, process: Process) -> FromText:
        message = await process.receive()
        self._silence = 0
        return message

    async def _read(self, process: Process) -> None:
        while True:
            message = await self._receive(process)
            if isinstance(message, (Encoded, Text, Refused)):
                self._unanswered = 0
                answer = self._waiting.get(message.id)
                if answer is None or answer.done():
                    continue
                if isinstance(message, Refused):
                    answer.set_exception(ValueError(message.message))
                else:
                    answer.set_result(message)

    def _tell_news(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _discard(self) -> None:
        """Ends the process, if it hasn't ended, and fails whoever waits for its answers."""
        self._serving = False
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(WorkerLost(f"{self._name} died; try again later"))
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.close()
