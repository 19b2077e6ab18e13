"""A child process that does one piece of work after the other, as its parent sees it: it is killed
when it exceeds a limit of time, and has one of memory. For what strangers write: chat templates and
grammars. See limited_child.py for the child's side.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from minisgl.children import child_environment, signal_child
from minisgl.ipc.process import describe_exit
from minisgl.text.errors import WorkerLost
from minisgl.text.limited_child import LENGTH_BYTES

_TICKS = 8  # that a deadline is made of
_BUFFER_BYTES = 2**20
_END_SECONDS = 3.0  # for the kernel to end what was killed

T = TypeVar("T")
Answer = TypeVar("Answer")


class Fault(Exception):  # noqa: N818
    """What the work did to its process, to follow its name ("the chat template") and precede what
    was asked of it ("to load").
    """

    def __init__(self, sentence: str, *, died: bool = False) -> None:
        super().__init__(sentence)
        self.died = died  # which may also have been somebody's kill


async def within(seconds: float, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Fault when it takes longer: counted in ticks of this process, which
    may have been stopped, too.
    """
    task = asyncio.ensure_future(work)
    try:
        for _ in range(_TICKS):
            done, _ = await asyncio.wait({task}, timeout=seconds / _TICKS)
            if done:
                return task.result()
    finally:
        task.cancel()
    raise Fault(f"took longer than {seconds:g} s")


class LimitedProcess(Generic[Answer]):
    """The running process. Made by start(); end() is due."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        decode: Callable[[bytes], Answer],
        max_answer_bytes: int,
    ) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._decode = decode
        self._max_answer_bytes = max_answer_bytes
        self._to, self._from = process.stdin, process.stdout

    @classmethod
    async def start(
        cls,
        kind: str,
        command: Sequence[str],
        decode: Callable[[bytes], Answer],
        max_answer_bytes: int,
        seconds: float,
    ) -> LimitedProcess[Answer]:
        """Runs the command, and waits so many seconds until it says that it is there. `kind`, such
        as "grammar", is in the process's name and in sentences about it. Answers are decoded by
        `decode`, which raises msgspec.DecodeError. Raises WorkerLost.

        A cancelled start still comes to its end first: asyncio may wait for ever for a process
        whose start it was to give up.
        """
        start = asyncio.ensure_future(_spawn((*command, f"minisgl-{kind}-0")))
        try:
            child = cls(await asyncio.shield(start), decode, max_answer_bytes)
        except OSError as error:
            raise WorkerLost(f"the {kind} process can't be started: {error}") from error
        except asyncio.CancelledError:
            with contextlib.suppress(OSError):
                await cls(await start, decode, max_answer_bytes).end()
            raise
        try:
            if await within(seconds, child._receive(bytes)):
                raise WorkerLost(f"the {kind} process said something else than that it is there")
        except BaseException as error:
            await child.end()
            if not isinstance(error, Fault):
                raise
            fault = f"{error} to start"
            if error.died:
                fault = f"did not start: it {describe_exit(await child._process.wait())}"
            raise WorkerLost(f"the {kind} process {fault}") from None
        return child

    async def ask(self, data: bytes) -> Answer:
        """Sends a frame and receives the next one. Raises Fault when the process ends."""
        # _receive() says how it ended. A pipe that is known to be closed is uvloop's RuntimeError.
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._to.write(data)
            await self._to.drain()
        return await self._receive(self._decode)

    async def _receive(self, decode: Callable[[bytes], T]) -> T:
        ends = (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError)
        with contextlib.suppress(*ends):
            length = int.from_bytes(await self._from.readexactly(LENGTH_BYTES), "little")
            if length <= self._max_answer_bytes:
                return decode(await self._from.readexactly(length))
        self.kill()  # it may also have said what can't be understood
        status = describe_exit(await self._process.wait())
        raise Fault(f"crashed its process, which {status}, when it was", died=True)

    def kill(self) -> None:
        """Ends it at once."""
        signal_child(self._process, signal.SIGKILL)

    async def end(self) -> None:
        """Ends it, waits for its end, and closes the pipes, whatever of an answer is in them."""
        self.kill()
        self._process._transport.close()  # type: ignore[attr-defined]
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), _END_SECONDS)


async def _spawn(command: Sequence[str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env=child_environment(),
        limit=_BUFFER_BYTES,
    )
