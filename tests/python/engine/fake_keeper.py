"""A keeper whose cluster is this machine: an actor is a process with what a real one would run."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import types

import msgspec

from minisgl.children import die_with_parent
from minisgl.ipc.child import ParentLink, run_child
from minisgl.ipc.keeper import (
    Connect,
    Connected,
    GuestGone,
    NotConnected,
    PlaceGuest,
    RemoveGuest,
    ToKeeper,
    to_keeper_decoder,
)
from minisgl.ipc.messages import Shutdown
from minisgl.tasks import background


class Cluster:
    def __init__(self, link: ParentLink[ToKeeper]) -> None:
        self._link = link
        self._actors: dict[int, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def obey(self) -> None:
        while True:
            message = await self._link.inbox.get()
            if isinstance(message, Shutdown):
                return
            if isinstance(message, PlaceGuest):
                self._tasks.append(background(self._run(message), "an actor"))
            elif isinstance(message, RemoveGuest) and message.number in self._actors:
                self._actors.pop(message.number).kill()

    async def _run(self, wish: PlaceGuest) -> None:
        assert (wish.cpus, wish.gpus) == (1, 1)
        number = wish.agent.number
        encoded = msgspec.msgpack.encode(wish.agent).hex()
        actor = await asyncio.create_subprocess_exec(sys.executable, __file__, "actor", encoded)
        self._actors[number] = actor
        status = await actor.wait()
        if self._actors.pop(number, None):
            gone = GuestGone(number, f"The actor died with status {status}.", with_node=False)
            self._link.outbox.put_nowait(gone)


async def main(link: ParentLink[ToKeeper]) -> int:
    wish = await link.inbox.get()
    assert isinstance(wish, Connect)
    if wish.address != "ray":
        link.outbox.put_nowait(NotConnected("no cluster is known by this name"))
        return 1
    link.outbox.put_nowait(Connected("127.0.0.1", gpus=8.0))
    await Cluster(link).obey()
    return 0


def pretend_ray() -> None:
    """What an actor asks Ray: its host has two GPUs."""
    own = types.SimpleNamespace(get_node_id=lambda: "own")
    resources = {"other": {"GPU": 9.0}, "own": {"CPU": 64.0, "GPU": 2.0}}
    nodes = [{"NodeID": node, "Resources": found} for node, found in resources.items()]
    ray = types.ModuleType("ray")
    vars(ray).update(get_runtime_context=lambda: own, nodes=lambda: nodes)
    sys.modules["ray"] = ray


if __name__ == "__main__":
    if sys.argv[1] == "actor":
        die_with_parent(signal.SIGKILL)
        pretend_ray()
        from minisgl.ray.guest import RankHost

        print(RankHost().run(bytes.fromhex(sys.argv[2])), file=sys.stderr)
        os._exit(0)
    run_child(to_keeper_decoder, main)
