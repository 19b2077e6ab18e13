"""The program of the keeper: the one process of a server that talks to Ray. It asks the cluster for
places, starts actors there, and tells the server what becomes of them. The tokens don't go this
way: actors connect to the server themselves.

When it ends, Ray ends its actors: nothing of a server is left in the cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

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
from minisgl.tasks import background, in_daemon_thread

CLIENT = "ray://"  # Ray's own protocol for programs outside of the cluster
CHECK_SECONDS = 5.0  # between two looks at whether the cluster is still there
SENTENCE = 500  # characters of what Ray says

logger = logging.getLogger(__name__)


def connect(wish: Connect) -> Connected:
    """Connects this process to the cluster. Raises whatever Ray raises."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nobody is told of it
    import ray

    is_client = wish.address.startswith(CLIENT)
    options: dict[str, Any] = {} if is_client else {"log_to_driver": wish.show_output}
    ray.init(
        wish.address if is_client else "auto",
        namespace="minisgl",
        logging_level=logging.ERROR,
        **options,
    )
    if is_client:
        host = address_towards(urlsplit(wish.address).hostname or "")
    else:
        host = ray.util.get_node_ip_address()
    return Connected(host, float(ray.cluster_resources().get("GPU", 0)))


def address_towards(host: str) -> str:
    """The address that this host has on the way to another one. Nothing is sent."""
    family = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)[0][0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 1))
        return str(probe.getsockname()[0])


def sentence_of(error: BaseException) -> str:
    """What Ray says, on one line, without its tables of identifiers."""
    lines = [line.strip() for line in str(error).splitlines() if not line.startswith(("\t", " "))]
    return " ".join(filter(None, lines))[:SENTENCE] or repr(error)[:SENTENCE]


@dataclass(eq=False)
class Placed:
    """What the cluster has for a guest."""

    group: Any  # Ray's placement group
    actor: Any
    ended: Any  # resolves with the actor's last word


class Keeper:
    """The guests of one server."""

    def __init__(self, link: ParentLink[ToKeeper]) -> None:
        self._link = link
        self._guests: dict[int, asyncio.Task[None]] = {}

    async def obey(self) -> None:
        """Until the server says Shutdown."""
        while True:
            message = await self._link.inbox.get()
            if isinstance(message, Shutdown):
                return
            if isinstance(message, PlaceGuest):
                number = message.agent.number
                self._guests[number] = background(self._keep(message), f"the care for {number}")
            elif isinstance(message, RemoveGuest) and (
                task := self._guests.pop(message.number, None)
            ):
                task.cancel()

    async def _keep(self, wish: PlaceGuest) -> None:
        """From the wish for a guest to its end."""
        number = wish.agent.number
        reason, with_node = "its server has gone", False
        placed: Placed | None = None
        placing = asyncio.create_task(in_daemon_thread(lambda: place(wish), f"place-{number}"))
        try:
            placed = await asyncio.shield(placing)
            # Ray's client can't have its futures cancelled.
            ended = asyncio.create_task(last_word(placed))
            ended.add_done_callback(lambda task: task.cancelled() or task.exception())
            reason = await asyncio.shield(ended) or reason
        except Exception as error:
            reason = sentence_of(error)
            with_node = placed is not None and has_lost_its_node(placed)
        finally:
            with contextlib.suppress(Exception):
                release(await placing)
        self._link.outbox.put_nowait(GuestGone(number, reason, with_node))


def place(wish: PlaceGuest) -> Placed:
    """Asks for a placement group with one bundle, which Ray puts on one host, and for an actor in
    it. Both wait in the cluster until there is room.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    from minisgl.ray.guest import RankHost

    bundle = {"CPU": float(wish.cpus), **({"GPU": float(wish.gpus)} if wish.gpus else {})}
    group = ray.util.placement_group(
        [bundle], strategy="STRICT_PACK", _soft_target_node_id=emptiest_node(bundle)
    )
    actor = (
        ray.remote(RankHost)
        .options(
            num_cpus=wish.cpus,
            num_gpus=wish.gpus,
            max_restarts=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0),
        )
        .remote()
    )
    encoded = msgspec.msgpack.encode(wish.agent)
    return Placed(group, actor, actor.run.remote(encoded))


def emptiest_node(bundle: dict[str, float]) -> str | None:
    """The id of the host that could have the bundle and has the fewest placement groups now, so
    that groups are spread over hosts; None where no host could have it yet.
    """
    import ray

    groups: Counter[str] = Counter()
    for known in ray.util.placement_group_table().values():
        if known["state"] == "CREATED":
            groups.update(set(known["bundles_to_node_id"].values()))
    fitting = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and all(node["Resources"].get(what, 0) >= n for what, n in bundle.items())
    ]
    return min(fitting, key=lambda node: (groups[node], node), default=None)


async def last_word(placed: Placed) -> str:
    """What the actor's agent ended with. Raises what Ray says of an actor that has died."""
    return str(await placed.ended)


def has_lost_its_node(placed: Placed) -> bool:
    """Whether the host that the guest was on is gone."""
    import ray

    table = ray.util.placement_group_table(placed.group)
    own = set(table.get("bundles_to_node_id", {}).values())
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return table.get("state") == "RESCHEDULING" or not own <= alive


def release(placed: Placed) -> None:
    """Ends the actor and frees its place."""
    import ray

    with contextlib.suppress(Exception):  # it is gone, or Ray is
        ray.kill(placed.actor, no_restart=True)
    with contextlib.suppress(Exception):
        ray.util.remove_placement_group(placed.group)


async def watch_cluster() -> str:
    """Until the cluster can't be asked any more, and why."""
    import ray

    while True:
        await asyncio.sleep(CHECK_SECONDS)
        try:
            await in_daemon_thread(ray.nodes, "nodes")
        except Exception as error:
            return sentence_of(error)


async def main(link: ParentLink[ToKeeper]) -> int:
    """Status 0 after Shutdown, 1 after NotConnected."""
    wish = await link.inbox.get()
    if not isinstance(wish, Connect):
        raise TypeError(f"expected Connect first, got {type(wish).__name__}")
    try:
        connected = await in_daemon_thread(lambda: connect(wish), "ray")
    except ImportError as error:
        sentence = f"Ray can't be imported ({error}): pip install 'minisgl[ray]' brings it"
        link.outbox.put_nowait(NotConnected(sentence))
        return 1
    except Exception as error:
        link.outbox.put_nowait(NotConnected(sentence_of(error)))
        return 1
    link.outbox.put_nowait(connected)
    obeying = asyncio.create_task(Keeper(link).obey())
    lost = asyncio.create_task(watch_cluster())
    await asyncio.wait({obeying, lost}, return_when=asyncio.FIRST_COMPLETED)
    if obeying.done():
        obeying.result()
        return 0
    link.outbox.put_nowait(NotConnected(lost.result()))
    return 1


if __name__ == "__main__":
    run_child(to_keeper_decoder, main)
