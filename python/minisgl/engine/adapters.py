"""The LoRA adapters of a server: what they are called, and which are known to every engine."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

GONE_SECONDS = 0.5  # between two looks whether a request still has an adapter that nobody may name

logger = logging.getLogger(__name__)


def _absolute(path: str) -> str:
    """Ranks have another working folder."""
    return os.path.abspath(path)


class AdapterError(Exception):
    """An adapter can't be loaded or isn't there. The sentence is meant for the operator."""


@dataclass(frozen=True)
class Adapter:
    """One that was loaded. Another one of the same name has another number."""

    id: int  # above 0
    name: str
    path: str
    is_first: bool = False  # --lora: the server doesn't start without it


class AdapterBook:
    """The adapters, which all engines of a server share. A group of ranks has each of `known` from
    its start on, or is told of it; those that requests may name are loaded everywhere.
    """

    def __init__(self, first: Sequence[tuple[str, str]] = (), *, enabled: bool = False) -> None:
        """`first`: names and folders of those that are there from the start on."""
        self.enabled = enabled or bool(first)
        self._named = {
            name: Adapter(number, name, _absolute(path), is_first=True)
            for number, (name, path) in enumerate(first, 1)
        }
        self._known = {one.id: one for one in self._named.values()}
        self._next = len(self._known) + 1
        self._loading: set[str] = set()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def names(self) -> list[str]:
        """What requests may say, in the order of loading."""
        return list(self._named)

    @property
    def known(self) -> list[Adapter]:
        """What a group of ranks must have."""
        return list(self._known.values())

    def find(self, name: str) -> Adapter | None:
        """The adapter of this name that requests may have."""
        return self._named.get(name)

    async def load(
        self,
        name: str,
        path: str,
        tell: Callable[[Adapter], Awaitable[None]],
        forget: Callable[[int], None],
    ) -> None:
        """Loads one on all engines: `tell` one of them all, `forget` it where one can't have it.
        Raises AdapterError.
        """
        if not self.enabled:
            raise AdapterError("adapters need --enable-lora or --lora at the server's start")
        if name in self._named or name in self._loading:
            raise AdapterError(f"the adapter {name!r} is loaded already: unload it first")
        adapter = Adapter(self._next, name, _absolute(path))
        self._next += 1
        self._loading.add(name)
        self._known[adapter.id] = adapter
        try:
            await tell(adapter)
        except BaseException:
            del self._known[adapter.id]
            forget(adapter.id)
            raise
        finally:
            self._loading.discard(name)
        self._named[name] = adapter
        logger.info("adapter %r: loaded from %s", name, adapter.path)

    def unload(
        self, name: str, is_used: Callable[[int], bool], forget: Callable[[int], None]
    ) -> None:
        """No request may name it any more; the engines forget it once none has it. Raises
        AdapterError.
        """
        adapter = self._named.pop(name, None)
        if adapter is None:
            raise AdapterError(f"there is no adapter {name!r}")
        logger.info("adapter %r: unloaded", name)

        async def end() -> None:
            while is_used(adapter.id):  # noqa: ASYNC110 - streams move among engines
                await asyncio.sleep(GONE_SECONDS)
            del self._known[adapter.id]
            forget(adapter.id)

        task = asyncio.create_task(end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
