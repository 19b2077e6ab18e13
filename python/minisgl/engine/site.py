"""Where replicas can be: this host, or others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

from minisgl.engine.launcher import MakeLauncher
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.placement import Accountant, Share
from minisgl.engine.served_model import ServedModel
from minisgl.ipc.messages import EngineOptions

LEAST_MEMORY_FRACTION = 0.01  # that EngineSettings takes


class Lot(Protocol):
    """A replica's place."""

    def launcher(self, model: ServedModel) -> MakeLauncher:
        """Starts its ranks there, with the copy of the model that the place has."""

    def fit(self, options: EngineOptions) -> EngineOptions:
        """The options with which a replica leaves the others what is theirs."""

    def give_back(self) -> None:
        """The replica there is no more."""

    def __str__(self) -> str:
        """What the replica has there, for the screen."""


class Site(Protocol):
    """Deals out lots. No two of them have anything in common."""

    def take(self, number: int, *, at_once: bool = False) -> Lot:
        """A place for the replica with this number; with `at_once` one that is surely free. Raises
        NoRoom.
        """


def divided_memory(options: EngineOptions, sharers: int, *, on_gpus: bool) -> EngineOptions:
    """The options of each of so many that share a host's memory. A GPU's memory is the replica's
    alone.
    """
    fraction = options.memory_fraction
    if not on_gpus:
        fraction = max(fraction / sharers, LEAST_MEMORY_FRACTION)
    host_bytes = -(-options.kv_host_bytes // sharers)  # some, where there are some
    return dataclasses.replace(options, memory_fraction=fraction, kv_host_bytes=host_bytes)


def share_of_memory(options: EngineOptions, share: Share) -> EngineOptions:
    """The options of a replica with this part of a host."""
    return divided_memory(options, share.sharers, on_gpus=bool(share.gpus))


class LocalLot:
    """A place on this host."""

    def __init__(self, accountant: Accountant, command: Sequence[str], number: int) -> None:
        self._accountant = accountant
        self.share = share = accountant.take()
        self._launcher: MakeLauncher = functools.partial(
            LocalRanks, command, share=share, label=f"-R{number}"
        )

    def launcher(self, model: ServedModel) -> MakeLauncher:
        """As in Lot: the options have the path."""
        return self._launcher

    def fit(self, options: EngineOptions) -> EngineOptions:
        """As in Lot."""
        return share_of_memory(options, self.share)

    def give_back(self) -> None:
        """As in Lot."""
        self._accountant.give_back(self.share)

    def __str__(self) -> str:
        return str(self.share)


class LocalSite:
    """This host."""

    def __init__(self, accountant: Accountant, command: Sequence[str]) -> None:
        """`command` is the rank program."""
        self._accountant = accountant
        self._command = command

    def take(self, number: int, *, at_once: bool = False) -> LocalLot:
        """As in Site."""
        return LocalLot(self._accountant, self._command, number)
