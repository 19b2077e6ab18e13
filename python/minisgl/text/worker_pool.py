"""Tokenizer processes as the server sees them: each is started, watched, restarted and ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from minisgl.ipc.messages import Failed, Shutdown
from minisgl.ipc.process import ChildProcess, describe_exit, python_command
from minisgl.ipc.text_messages import (
    Encoded,
    FromText,
    Refused,
    Text,
    TextOptions,
    TextReady,
    decode_from_text,
)
from minisgl.tokenizer.chat_template import ChatTemplateError

MAX_RESTART_DELAY = 10.0  # seconds

logger = logging.getLogger(__name__)


class WorkerLost(Exception):  # noqa: N818
    """The process died before it answered, or isn't there now (HTTP 503)."""


class WorkerStartError(Exception):
    """The process could not start. The sentence is meant for the screen."""


class WorkerClient:
    """One tokenizer process. Belongs to the event loop that called start()."""

    def __init__(
        self, name: str, options: TextOptions, *, command: Sequence[str] | None = None
    ) -> None:
        self._name = name
        self._options = options
        self._command = command or python_command("minisgl.text.worker_process")
        self._process: ChildProcess[FromText] | None = None
        self._waiting: dict[int, asyncio.Future[Encoded | Text]] = {}
        self._serving = False
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Questions without an answer yet."""
        return len(self._waiting)

    @property
    def serving(self) -> bool:
        """Whether it is there to be asked."""
        return self._serving

    async def start(self) -> None:
        """Starts the process and waits until it has loaded. Raises WorkerStartError."""
        await self._start_process()
        self._supervisor = asyncio.create_task(self._supervise())

    async def ask(self, message_id: int, message: Any) -> Encoded | Text:
        """Sends a message and waits for its answer. ValueError, ChatTemplateError or WorkerLost."""
        answer: asyncio.Future[Encoded | Text] = asyncio.get_running_loop().create_future()
        self._waiting[message_id] = answer
        try:
            self.tell(message)
            return await answer
        finally:
            del self._waiting[message_id]

    def tell(self, message: Any) -> None:
        """Sends a message that has no answer. WorkerLost when the process isn't there."""
        if not self._serving or self._process is None or not self._process.send(message):
            raise WorkerLost(f"{self._name} is restarting; try again later")

    async def close(self) -> None:
        """Ends the process. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        if self._process is not None:
            await self._process.stop(Shutdown() if self._serving else None)
            self._discard()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()
            self._discard()

    async def _start_process(self) -> None:
        try:
            process = await ChildProcess[FromText].spawn(self._command, decode_from_text)
        except OSError as error:
            raise WorkerStartError(f"{self._name} can't be started: {error}") from error
        self._process = process
        ready = asyncio.create_task(self._until_ready(process))
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({ready, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                await asyncio.wait({ready}, timeout=0.5)
            if not ready.done():
                raise WorkerStartError(f"{self._name} {describe_exit(ended.result())} at its start")
            ready.result()
        finally:
            ready.cancel()
            ended.cancel()
        self._serving = True

    async def _until_ready(self, process: ChildProcess[FromText]) -> None:
        await process.configure(self._options)
        while True:
            message = await process.receive()
            if isinstance(message, Failed):
                raise WorkerStartError(message.message)
            if isinstance(message, TextReady):
                return

    async def _supervise(self) -> None:
        delay = 0.5
        while True:
            process = self._process
            assert process is not None
            reader = asyncio.create_task(self._read(process))
            try:
                status = await process.wait()
            finally:
                reader.cancel()
            self._discard()
            while not self._serving:
                logger.error(
                    "%s %s; starting it again in %g s", self._name, describe_exit(status), delay
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, MAX_RESTART_DELAY)
                try:
                    await self._start_process()
                except WorkerStartError as error:
                    logger.error("%s", error)
                    self.kill()

    async def _read(self, process: ChildProcess[FromText]) -> None:
        while True:
            message = await process.receive()
            if isinstance(message, (Encoded, Text, Refused)):
                answer = self._waiting.get(message.id)
                if answer is None or answer.done():
                    continue
                if isinstance(message, Refused):
                    kind = ChatTemplateError if message.kind == "template" else ValueError
                    answer.set_exception(kind(message.message))
                else:
                    answer.set_result(message)

    def _discard(self) -> None:
        self._serving = False
        if self._process is not None:
            self._process.close()
            self._process = None
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(WorkerLost(f"{self._name} died; try again later"))
