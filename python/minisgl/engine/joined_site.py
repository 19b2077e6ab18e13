"""Hosts that have joined (`minisgl-serve --join`), as places for whole replicas."""

from __future__ import annotations

import functools
import socket

from minisgl.engine.launcher import MakeLauncher
from minisgl.engine.linked_ranks import LinkedRanks
from minisgl.engine.nodes import FIRST_GUEST, NodeHub
from minisgl.engine.placement import Accountant, Gpu, Machine, NoRoom
from minisgl.engine.served_model import ServedModel
from minisgl.engine.site import Lot, Site, share_of_memory
from minisgl.ipc.messages import EngineOptions, NamedModel
from minisgl.ipc.node_link import GpuReport, HostReport, derive_key


def report_of(machine: Machine, groups: int, model: NamedModel | None = None) -> HostReport:
    """What this host has, for the server that it joins. `groups`: as many as its cores are divided
    among; `model`: its own, where it is a commit of a Hugging Face id.
    """
    gpus = [GpuReport(gpu.name, list(gpu.near), sorted(gpu.links)) for gpu in machine.gpus]
    return HostReport(
        name=socket.gethostname()[:256],
        cores=list(machine.cores),
        gpus=gpus,
        groups=groups,
        model=model,
    )


def guest_number(secret: str, name: str) -> int:
    """A host's number, the same whenever it joins."""
    digest = derive_key(secret, "guest", name)
    return FIRST_GUEST + int.from_bytes(digest[:4], "big") % (2**32 - FIRST_GUEST)


class JoinedLot:
    """A place on a host that has joined. While that is away, the replica waits for it."""

    def __init__(
        self, hub: NodeHub, host: int, report: HostReport, accountant: Accountant, replica: int
    ) -> None:
        """`host` and `replica` are numbers. Raises NoRoom."""
        self._accountant = accountant
        self._name = report.name
        self._own = report.model
        self._share = share = accountant.take()
        self._launcher = functools.partial(
            LinkedRanks, hub, host, share=share, label=f"-R{replica}"
        )

    def launcher(self, model: ServedModel) -> MakeLauncher:
        """As in Lot. The host has its own copy of the model that the server was started with; it
        looks for another one where that is an earlier or later commit of the same.
        """
        named, own = model.named, self._own
        if named is None and own is not None and own.model == model.name:
            served = NamedModel(model.name, model.revision)
            named = None if own == served else served
        return functools.partial(self._launcher, model=named)

    def fit(self, options: EngineOptions) -> EngineOptions:
        """As in Lot."""
        return share_of_memory(options, self._share)

    def give_back(self) -> None:
        """As in Lot."""
        self._accountant.give_back(self._share)

    def __str__(self) -> str:
        return f"host {self._name}, {self._share}"


class JoinedSite:
    """This host, and those that have joined: the first that has room."""

    def __init__(self, local: Site, hub: NodeHub, ranks: int, threads: int) -> None:
        """Replicas have `ranks` ranks, with `threads` threads each where that isn't 0."""
        self._local = local
        self._hub = hub
        self._ranks = ranks
        self._threads = threads
        self._accountants: dict[int, tuple[HostReport, Accountant]] = {}

    def take(self, number: int, *, at_once: bool = False) -> Lot:
        """As in Site."""
        try:
            return self._local.take(number, at_once=at_once)
        except NoRoom as error:
            reasons = [str(error)]
        for host, report in sorted(self._hub.reports.items()):
            try:
                accountant = self._accountant(host, report)
                return JoinedLot(self._hub, host, report, accountant, number)
            except NoRoom as error:
                reasons.append(f"on host {report.name}: {error}")
        raise NoRoom("; ".join(reasons))

    def _accountant(self, host: int, report: HostReport) -> Accountant:
        """That of a host, which is the same for as long as the host has the same to offer."""
        known = self._accountants.get(host)
        if known is None or known[0] != report:
            gpus = [Gpu(gpu.name, tuple(gpu.near), frozenset(gpu.links)) for gpu in report.gpus]
            machine = Machine(tuple(report.cores), tuple(gpus))
            accountant = Accountant(machine, self._ranks, report.groups, self._threads)
            self._accountants[host] = (report, accountant)
        return self._accountants[host][1]
