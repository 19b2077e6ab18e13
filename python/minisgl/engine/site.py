"""Where replicas can be: this host, or others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Protocol

from minisgl.engine.launcher import MakeLauncher
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.placement import Accountant, Share
from minisgl.ipc.messages import EngineOptions

LEAST_MEMORY_FRACTION = 0.01  # that EngineSettings takes


class Lot(Protocol):
    """A replica's place."""

    @property
    def launcher(self) -> MakeLauncher:
        """Starts its ranks there."""

    def fit(self, options: EngineOptions) -> EngineOptions:
        """The options with which a replica leaves the others what is theirs."""

    def give_back(self) -> None:
        """The replica there is no more."""

    def __str__(self) -> str:
        """What the replica has there, for the screen."""


class Site(Protocol):
    """Deals out lots. No two of them have anything in common."""

    def take(self, number: int) -> Lot:
        """A place for the replica with this number. Raises NoRoom."""


def divided_memory(options: EngineOptions, sharers: int) -> EngineOptions:
    """The options of each of so many that share a host's memory."""
    fraction = max(options.memory_fraction / sharers, LEAST_MEMORY_FRACTION)
    host_bytes = -(-options.kv_host_bytes // sharers)  # some, where there are some
    return dataclasses.replace(options, memory_fraction=fraction, kv_host_bytes=host_bytes)


def share_of_memory(options: EngineOptions, share: Share) -> EngineOptions:
    """A GPU's memory is the replica's alone, the host's is everybody's."""
    divided = divided_memory(options, share.sharers)
    if share.gpus:
        return dataclasses.replace(divided, memory_fraction=options.memory_fraction)
    return divided


class LocalLot:
    """A place on this host."""

    def __init__(self, accountant: Accountant, command: Sequence[str], number: int) -> None:
        self._accountant = accountant
        self.share = share = accountant.take()
        self.launcher: MakeLauncher = functools.partial(
            LocalRanks, command, share=share, label=f"-R{number}"
        )

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

    def take(self, number: int) -> LocalLot:
        """As in Site."""
        return LocalLot(self._accountant, self._command, number)
