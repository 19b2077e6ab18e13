"""The parent's end of a child process: start it, talk to it, notice its end, end it. See child.py
for the other end.

The two sockets have no name when the child starts: it inherits a descriptor of each and connects
through /proc/self/fd. So nobody else can connect, and nothing is left behind however the processes
end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

import zmq

from minisgl.children import child_environment
from minisgl.ipc.messages import encode
from minisgl.ipc.queues import Decoder, ZmqAsyncPullQueue, ZmqAsyncPushQueue

MAX_SOCKET_PATH = 100  # bytes; the kernel's limit is 107
STOP_SECONDS = 3.0  # from the polite end to SIGTERM, and from there to SIGKILL

Inbound = TypeVar("Inbound")


def describe_exit(status: int) -> str:
    """What a returncode means, to follow "the process": "was killed by SIGKILL", "ended with status
    3".
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (often the kernel, out of memory)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


@contextlib.contextmanager
def private_directory(*names: str) -> Iterator[str]:
    """A directory (0700) for the moment in which sockets of these names are made, with a path short
    enough for them. Its end needs no free file descriptor.
    """
    directory = tempfile.mkdtemp(prefix="minisgl-")
    if len(os.fsencode(directory)) + max(map(len, names)) >= MAX_SOCKET_PATH:
        os.rmdir(directory)
        directory = tempfile.mkdtemp(prefix="minisgl-", dir="/tmp")
    try:
        yield directory
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/{name}")
        os.rmdir(directory)


class ChildProcess(Generic[Inbound]):
    """A running child. Made by spawn(); ended by stop() or kill(), then close().

    A child that sends what can't be decoded is broken: it is killed, so that nobody waits for an
    answer that was lost with it.
    """

    _process: asyncio.subprocess.Process

    def __init__(self, decoder: Decoder[Inbound]) -> None:
        """Raises OSError where there are no sockets to be had."""
        zmq.Context.instance()  # its threads start before there is a directory
        self._doors: list[int] = []  # descriptors of the two sockets, until the child has them
        with (
            private_directory("to", "from") as directory,
            contextlib.ExitStack() as undo,
        ):
            try:
                self._push = ZmqAsyncPushQueue[Any](f"ipc://{directory}/to", True, encode)
                undo.callback(self._push.close, 0)
                self._pull = ZmqAsyncPullQueue(
                    f"ipc://{directory}/from", True, decoder, on_malformed=lambda data: self.kill()
                )
                undo.callback(self._pull.close, 0)
            except zmq.ZMQError as error:  # which is no OSError
                raise OSError(error.errno, str(error)) from error
            undo.callback(self._close_doors)
            for name in ("to", "from"):
                self._doors.append(os.open(f"{directory}/{name}", os.O_PATH | os.O_CLOEXEC))
            undo.pop_all()

    @classmethod
    async def spawn(
        cls, command: Sequence[str], decoder: Decoder[Inbound], pass_fds: Sequence[int] = ()
    ) -> ChildProcess[Inbound]:
        """Starts `command TO FROM PARENT_PID`, with descriptors of the sockets. Raises OSError if
        that isn't possible.

        The child has its own session, so that the terminal's Ctrl-C reaches the parent alone, and
        inherits nothing but standard output and error and the descriptors in `pass_fds`.
        """
        child = cls(decoder)
        try:
            child._process = await asyncio.create_subprocess_exec(
                *command,
                *map(str, child._doors),
                str(os.getpid()),
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(*pass_fds, *child._doors),
                env=child_environment(),
            )
        except BaseException:
            child.close()
            raise
        child._close_doors()
        return child

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs, negative for the signal that killed it."""
        return self._process.returncode

    async def configure(self, message: Any) -> None:
        """Puts the first message; waits until the child is there to take it."""
        await self._push.put(message)

    def send(self, message: Any) -> bool:
        """Puts a message without waiting; False when the child is gone."""
        return self._push.put_nowait(message)

    async def receive(self) -> Inbound:
        """The next message from the child. Waits for ever when the child is gone."""
        return await self._pull.get()

    async def wait(self) -> int:
        """The returncode, when the child ends."""
        return await self._process.wait()

    def kill(self) -> None:
        """Ends it at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def stop(self, farewell: Any | None, patience: float = STOP_SECONDS) -> int:
        """Ends it, with more force every `patience` seconds: the farewell message, SIGTERM,
        SIGKILL.

        Without a farewell it begins with SIGTERM. Returns the returncode.
        """
        if farewell is not None and self.send(farewell) and await self._ended_within(patience):
            return await self._process.wait()
        for end in (self._process.terminate, self._process.kill):
            with contextlib.suppress(ProcessLookupError):
                end()
            if await self._ended_within(patience):
                break
        return await self._process.wait()

    async def _ended_within(self, seconds: float) -> bool:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), seconds)
        return self._process.returncode is not None

    def close(self) -> None:
        """Closes the queues. The child must have ended."""
        self._push.close(0)
        self._pull.close(0)
        self._close_doors()

    def _close_doors(self) -> None:
        while self._doors:
            os.close(self._doors.pop())
