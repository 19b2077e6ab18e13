"""The parent's end of a child process: start it, talk to it, notice its end, end it. See child.py
for the other end.

The two sockets are abstract: they are no files, so that nothing is left behind however and whenever
the processes end. Only processes of the same user can connect to them; see queues.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import zmq

from minisgl.children import child_environment, signal_child
from minisgl.ipc.queues import Decoder, ZmqAsyncPullQueue, ZmqAsyncPushQueue, as_is

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


class ChildProcess(Generic[Inbound]):
    """A running child. Made by spawn(); ended by stop() or kill(), then close().

    A child that sends what can't be decoded is broken: it is killed, so that nobody waits for an
    answer that was lost with it.
    """

    _process: asyncio.subprocess.Process

    def __init__(self, decoder: Decoder[Inbound]) -> None:
        """Raises OSError where there are no sockets to be had."""
        name = f"ipc://@minisgl-{secrets.token_hex(16)}"
        self._addresses = (f"{name}/to", f"{name}/from")
        to_child, from_child = self._addresses
        with contextlib.ExitStack() as undo:
            try:
                self._push = ZmqAsyncPushQueue[Any](to_child, True, as_is)
                undo.callback(self._push.close, 0)
                self._pull = ZmqAsyncPullQueue(
                    from_child, True, decoder, on_malformed=lambda data: self.kill()
                )
            except zmq.ZMQError as error:  # which is no OSError
                raise OSError(error.errno, str(error)) from error
            undo.pop_all()

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        name: str,
        decoder: Decoder[Inbound],
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> ChildProcess[Inbound]:
        """Starts `command TO FROM PARENT_PID NAME`, with the sockets' addresses; `name` is what the
        list of processes and log lines call it, and `environment` what it has besides this
        process's. Raises OSError if that isn't possible.

        The child has its own session, so that the terminal's Ctrl-C reaches the parent alone, and
        inherits nothing but standard output and error and the descriptors in `pass_fds`.
        """
        child = cls(decoder)
        try:
            child._process = await asyncio.create_subprocess_exec(
                *command,
                *child._addresses,
                str(os.getpid()),
                name,
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=pass_fds,
                env={**child_environment(), **environment},
            )
        except BaseException:
            child.close()
            raise
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
        signal_child(self._process, signal.SIGKILL)

    async def stop(self, farewell: Any | None, patience: float = STOP_SECONDS) -> int:
        """Ends it, with more force every `patience` seconds: the farewell message, SIGTERM,
        SIGKILL.

        Without a farewell it begins with SIGTERM. Returns the returncode.
        """
        if farewell is not None and self.send(farewell) and await self._ended_within(patience):
            return await self._process.wait()
        for sent in (signal.SIGTERM, signal.SIGKILL):
            signal_child(self._process, sent)
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
