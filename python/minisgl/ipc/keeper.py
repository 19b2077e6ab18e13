"""Messages between the server and its keeper, the process that talks to a Ray cluster. A guest is a
host of NodeHub's: an actor of Ray's with a NodeAgent in it.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from minisgl.ipc.messages import Sentence, Shutdown

Number = Annotated[int, Meta(ge=0, le=2**32 - 1)]  # a guest's, in NodeHub


class AgentSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent in an actor is told: which model its ranks load, and where its server is."""

    model: str | None  # as --model has it; the actor's host looks it up
    revision: str | None
    weights: bool  # whether they are needed
    command: list[str]  # the rank program; empty: that of the actor's own minisgl
    cpus: Annotated[int, Meta(ge=1)]  # the group's
    gpus: Annotated[int, Meta(ge=0)]  # the group's; 0: it computes on CPUs
    host: str
    port: int
    secret: str
    number: Number
    patience: float  # seconds that the server may be out of reach
    log_level: str
    log_format: str


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """The first message: which cluster, as ray.init() takes it, and whether what its actors print
    is to be seen here.
    """

    address: str
    show_output: bool


class PlaceGuest(msgspec.Struct, frozen=True, tag="place"):
    """Find a place in the cluster for so many CPUs and GPUs, all on one host, and start the agent
    there.
    """

    cpus: Annotated[int, Meta(ge=0)]
    gpus: Annotated[int, Meta(ge=0)]
    agent: AgentSpec


class RemoveGuest(msgspec.Struct, frozen=True, tag="remove"):
    """End a guest, wherever it is, and free its place."""

    number: Number


class Connected(msgspec.Struct, frozen=True, tag="connected"):
    """The cluster is there."""

    host: str  # this host's address, as the cluster reaches it
    gpus: float  # that the cluster has


class NotConnected(msgspec.Struct, frozen=True, tag="not_connected"):
    """The cluster can't be reached, and why. The keeper ends."""

    reason: Sentence


class GuestGone(msgspec.Struct, frozen=True, tag="gone"):
    """A guest has ended without having been removed, and why."""

    number: Number
    reason: Sentence
    with_node: bool  # its host is gone, too


ToKeeper = Connect | PlaceGuest | RemoveGuest | Shutdown
FromKeeper = Connected | NotConnected | GuestGone

to_keeper_decoder: msgspec.msgpack.Decoder[ToKeeper] = msgspec.msgpack.Decoder(ToKeeper)
from_keeper_decoder: msgspec.msgpack.Decoder[FromKeeper] = msgspec.msgpack.Decoder(FromKeeper)
