"""Which communicator the ranks of a model use, by name and by what is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minisgl import _native
from minisgl.config import COMM_KINDS, CommKind
from minisgl.distributed.impl import TorchDistributedImpl
from minisgl.distributed.info import DistributedInfo
from minisgl.distributed.plugin import make_plugin_communicator
from minisgl.distributed.pynccl import clamp_buffer, find_nccl_library

# How GPUs sum.
_SUMS: dict[str, Literal["fastest", "nccl", "peers"]] = {
    "auto": "fastest",
    "nccl": "nccl",
    "one-shot": "peers",
}


@dataclass(frozen=True)
class Group:
    """How ranks find each other: those of one host by a name that no other group of the host has,
    those of several by rank 0's address ("host:port") and a secret of 8 to 64 bytes. `timeout`, in
    seconds, is how long a rank waits for the others at the start and in a collective.
    """

    name: str
    address: str | None = None
    secret: str = ""
    timeout: float = 30.0


@dataclass(frozen=True)
class ChosenCommunicator:
    """A rank's communicators, and why they are these."""

    communicator: _native.Communicator
    sentence: str  # what was chosen and why, for the screen
    host: _native.Communicator  # the CPU group that was made on the way; may be the same


def make_communicator(
    kind: CommKind,
    info: DistributedInfo,
    group: Group,
    *,
    device: int | None = None,
    max_buffer_bytes: int = 0,
) -> ChosenCommunicator:
    """Connects this rank to the others; all ranks call it with the same kind and group.

    `device`: the ordinal of this rank's GPU, None for a CPU rank. `max_buffer_bytes`: the size of
    a buffer registered with NCCL, which kind "auto" uses where it makes sums faster. Kind "torch"
    needs torch.distributed's default group.

    Raises ValueError for a kind that can't work there, _native.InputError where the build or the
    machine lacks something, _native.RankFailure where another rank fails.
    """
    check_kind(kind, device)
    host, how = _make_host_communicator(info, group)
    if kind == "torch":
        plugin = make_plugin_communicator(
            TorchDistributedImpl(), info, -1 if device is None else device
        )
        return ChosenCommunicator(plugin, "ranks talk through torch.distributed, as asked", host)
    if device is None:
        return ChosenCommunicator(host, f"ranks talk through {host.name}: {how}", host)
    gpu = _native.PyNCCLCommunicator(
        host,
        device=device,
        sums=_SUMS[kind],
        max_buffer_bytes=clamp_buffer(max_buffer_bytes),
        library=find_nccl_library(),
        timeout=group.timeout,
    )
    return ChosenCommunicator(gpu, f"ranks talk through {gpu.name}", host)


def check_kind(kind: str, device: int | None) -> None:
    """Raises ValueError for a kind that doesn't exist, or not for these ranks."""
    if kind not in COMM_KINDS:
        raise ValueError(f"comm must be one of {', '.join(COMM_KINDS)}, got {kind!r}")
    if device is None and kind in ("nccl", "one-shot"):
        raise ValueError(f"--comm {kind} is for GPUs; CPU ranks need auto, shm or torch")
    if device is not None and kind == "shm":
        raise ValueError("--comm shm is for CPU ranks; GPUs need auto, nccl, one-shot or torch")


def _make_host_communicator(
    info: DistributedInfo, group: Group
) -> tuple[_native.Communicator, str]:
    """A communicator between the ranks' CPUs, and why it is this one."""
    if group.address is None:
        shm = _native.ShmCommunicator(
            group.name, rank=info.rank, size=info.size, timeout=group.timeout
        )
        return shm, "all are on this host"
    tcp = _native.TcpCommunicator(
        group.address, secret=group.secret, rank=info.rank, size=info.size, timeout=group.timeout
    )
    return tcp, f"they are on several hosts, and meet at {group.address}"
