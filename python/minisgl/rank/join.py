"""How a rank's process settles on its cores and finds the other ranks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from minisgl.cores import cores_near_gpu
from minisgl.ipc.messages import EngineOptions, Place

if TYPE_CHECKING:
    from minisgl.config import CommKind
    from minisgl.distributed.choose import ChosenCommunicator

SPIN_MICROSECONDS = 20  # a rank with cores of its own watches so long for a plan
# While they start, ranks come and load at their own pace. The server ends them all as soon as one
# is dead or stuck, so this only bounds what nobody watches. Ranks that have loaded wait for each
# other no longer than the place's step_timeout.
PATIENCE_SECONDS = 1800.0


class CommunicatorError(Exception):
    """The ranks can't be joined in the way that was asked for. The sentence is for the screen."""


@dataclass(frozen=True)
class JoinedGroup:
    """What a rank among several adds to the native engine's arguments, and what was chosen."""

    arguments: dict[str, Any]
    comm: str  # a sentence


def settle(place: Place, options: EngineOptions) -> tuple[dict[str, Any], list[int]]:
    """Pins the calling thread, and so those that it will start, to the rank's cores, where it has
    any. Returns what that adds to the native engine's arguments, and the cores.
    """
    from minisgl import _native

    if place.sharers == 1:  # the host is the rank's alone
        return {}, []
    cores = place.cores
    gpu = gpu_of(place, options)
    if gpu is not None and place.sharers == place.local_size:  # the group has the host to itself
        cores = cores_near_gpu(_native.gpu_pci_id(gpu), sorted(os.sched_getaffinity(0)))
    arguments: dict[str, Any] = {}
    if not options.num_threads:
        usable = _native.usable_processors() // place.sharers
        dealt = len(cores) if gpu is None and cores else usable
        arguments["num_threads"] = max(1, min(usable, dealt))
    if cores:
        os.sched_setaffinity(0, cores)
    return arguments, cores


def gpu_of(place: Place, options: EngineOptions) -> int | None:
    """The number of the rank's GPU; None where it computes on the processor."""
    from minisgl import _native

    on_gpu = options.device == "cuda" or (options.device == "auto" and _native.num_gpus() > 0)
    return place.local_rank if on_gpu else None


def join_group(place: Place, options: EngineOptions, cores: list[int]) -> JoinedGroup:
    """Waits until all ranks have called it. `cores` are those that this one has settled on. Raises
    CommunicatorError, and the native module's InputError and RankFailure.
    """
    from minisgl import _native

    gpu = gpu_of(place, options)
    if gpu is not None and place.local_size > _native.num_gpus():
        raise CommunicatorError(
            f"{place.local_size} ranks need a GPU each, but this host has {_native.num_gpus()}: "
            "set a smaller --tp, or --device cpu"
        )
    kind = place.comm
    if kind == "auto" and options.deterministic and gpu is not None:
        kind = "one-shot"  # it sums in the order of ranks
    chosen = _communicate(place, kind, gpu)
    arguments: dict[str, Any] = {}
    arguments["place"] = _native.Place(
        rank=place.rank,
        size=place.size,
        local_size=place.local_size,
        ring_fd=place.ring_fd,
        host=place.host,
        plan_port=place.plan_port,
        remotes=[(keys.rank, keys.follower, keys.primary) for keys in place.remotes],
        spin_microseconds=SPIN_MICROSECONDS if cores else 0,
        device_comm=chosen.communicator,
        host_comm=chosen.host,
        step_timeout=place.step_timeout,
    )
    return JoinedGroup(arguments, chosen.sentence)


def _communicate(place: Place, kind: str, gpu: int | None) -> ChosenCommunicator:
    from minisgl.distributed.choose import Group, make_communicator
    from minisgl.distributed.info import DistributedInfo

    info = DistributedInfo(place.rank, place.size)
    host = f"[{place.host}]" if ":" in place.host else place.host
    group = Group(
        place.name,
        address=f"{host}:{place.sum_port}" if place.host else None,
        secret=place.secret,
        timeout=PATIENCE_SECONDS,
    )
    try:
        chosen = make_communicator(cast("CommKind", kind), info, group, device=gpu)
    except ValueError as error:
        raise CommunicatorError(str(error)) from error
    if place.comm == "torch":
        _start_torch(place, chosen, gpu)
    return chosen


def _start_torch(place: Place, chosen: ChosenCommunicator, gpu: int | None) -> None:
    """Starts torch.distributed's default group. Rank 0's port travels over the host's
    communicator.
    """
    try:
        import torch
        from torch import distributed as dist
        from torch.distributed import TCPStore  # type: ignore[attr-defined]
    except ImportError as error:
        raise CommunicatorError("--comm torch needs torch, which is not installed") from error
    address = place.host or "127.0.0.1"
    port = torch.zeros(1, dtype=torch.int32)
    store = None
    if place.rank == 0:
        store = TCPStore(address, 0, place.size, True, wait_for_workers=False)
        port[0] = store.port
    chosen.host.broadcast(port)
    store = store or TCPStore(address, int(port), place.size, False)
    if gpu is not None:
        torch.cuda.set_device(gpu)
    dist.init_process_group(
        "gloo" if gpu is None else "nccl", store=store, rank=place.rank, world_size=place.size
    )
