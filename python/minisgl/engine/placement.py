"""Who gets what of a host: the processor cores, GPUs and memory of replicas and their ranks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from minisgl.cores import format_core_list
from minisgl.engine.api import ReplicaRefused


class NoRoom(ReplicaRefused):
    """There is nothing left for one more replica."""


@dataclass(frozen=True)
class Gpu:
    """A GPU of a host."""

    name: str  # as CUDA_VISIBLE_DEVICES takes it
    near: tuple[int, ...] = ()  # the cores on its side; empty where the kernel doesn't say
    links: frozenset[int] = frozenset()  # numbers of the GPUs that NVLink joins it to


@dataclass(frozen=True)
class Machine:
    """What a host has."""

    cores: tuple[int, ...]  # neighbours beside each other: by NUMA node, then by shared core
    gpus: tuple[Gpu, ...] = ()  # none: the ranks compute on the processor


@dataclass(frozen=True)
class Share:
    """A replica's part of a host. By default all of it."""

    gpus: tuple[str, ...] = ()  # one for each rank
    cores: tuple[int, ...] = ()  # empty: none in particular
    sharers: int = 1  # replicas that the host is divided among

    def divide(self, count: int, allowed: Sequence[int]) -> list[list[int]]:
        """The cores of each of `count` ranks; `allowed` are those of this process. A rank that has
        the host to itself, and replicas that share too few, have none in particular.
        """
        alone = self.sharers == 1 and count > 1
        return divide_cores(self.cores or (allowed if alone else ()), count)

    def __str__(self) -> str:
        devices = f"GPU {', '.join(self.gpus)}" if self.gpus else "CPU"
        cores = f"cores {format_core_list(sorted(self.cores))}" if self.cores else "any core"
        return f"{devices}, {cores}"


@dataclass
class Accountant:
    """Deals out a host to replicas of `ranks` ranks each. No GPU and, where there are enough, no
    core belongs to two of them.
    """

    machine: Machine
    ranks: int
    replicas: int  # that the host is divided among at the start
    threads: int = 0  # per rank; 0: the cores are divided evenly
    _free_gpus: set[int] = field(init=False)
    _free_runs: list[tuple[int, ...]] = field(init=False)  # of cores; of replicas without a GPU

    def __post_init__(self) -> None:
        self._free_gpus = set(range(len(self.machine.gpus)))
        cores = self.machine.cores
        each = self.ranks * self.threads or len(cores) // self.replicas
        if each < self.ranks or len(cores) < self.replicas * each:
            self._free_runs = [()] * self.replicas
        else:
            num_runs = len(cores) // each
            self._free_runs = [cores[n * each : (n + 1) * each] for n in range(num_runs)]

    def take(self) -> Share:
        """A replica's share. Raises NoRoom."""
        if self.machine.gpus:
            numbers = self._choose_gpus()
            self._free_gpus -= set(numbers)
            names = tuple(self.machine.gpus[number].name for number in numbers)
            cores = itertools.chain(*(self._cores_of(number) for number in numbers))
            return Share(names, tuple(cores), self.replicas)
        if not self._free_runs:
            raise NoRoom(
                f"all {len(self.machine.cores)} cores of this host belong to replicas; a smaller "
                "--threads or a larger --replicas at the start leaves room for more"
            )
        return Share((), self._free_runs.pop(0), self.replicas)

    def give_back(self, share: Share) -> None:
        """The replica with this share is no more."""
        if self.machine.gpus:
            names = [gpu.name for gpu in self.machine.gpus]
            self._free_gpus |= {names.index(name) for name in share.gpus}
        else:
            self._free_runs = sorted([*self._free_runs, share.cores])

    def _choose_gpus(self) -> tuple[int, ...]:
        """Free GPUs for one replica: those with most links among them and, of these, with fewest
        to the others that are free, which may be somebody else's neighbourhood.
        """
        gpus, free = self.machine.gpus, sorted(self._free_gpus)
        if len(free) < self.ranks:
            raise NoRoom(
                f"a replica of {self.ranks} ranks needs {self.ranks} GPUs, and {len(free)} of the "
                f"{len(gpus)} of this host are free"
            )

        def cost(chosen: tuple[int, ...]) -> tuple[int, int]:
            within = sum(len(gpus[number].links & set(chosen)) for number in chosen)
            all_free = sum(len(gpus[number].links & self._free_gpus) for number in chosen)
            return -within, all_free - within

        return min(itertools.combinations(free, self.ranks), key=cost)

    def _cores_of(self, number: int) -> Sequence[int]:
        """A GPU's part of the cores near it, which all GPUs there share."""
        near = self.machine.gpus[number].near
        sharers = [n for n, gpu in enumerate(self.machine.gpus) if gpu.near == near]
        each = len(near) // len(sharers)
        first = sharers.index(number) * each
        return near[first : first + each]


def divide_cores(cores: Sequence[int], count: int) -> list[list[int]]:
    """Disjoint runs of cores for `count` ranks, equally long, in their order. All empty, which
    means none in particular, where there are fewer cores than ranks.
    """
    each = len(cores) // count
    return [list(cores[index * each : (index + 1) * each]) for index in range(count)]
