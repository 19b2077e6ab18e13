"""The LoRA adapters of a rank: read in threads of their own while it serves."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from minisgl.ipc.messages import AdapterLoaded, LoadAdapter, UnloadAdapter
from minisgl.tasks import in_daemon_thread

if TYPE_CHECKING:
    from minisgl._native import Engine, Follower
    from minisgl.rank.load import Outbox

logger = logging.getLogger(__name__)


class RankAdapters:
    """Does what the server says about adapters, and answers."""

    def __init__(self, engine: Engine | Follower, outbox: Outbox) -> None:
        self._engine = engine
        self._outbox = outbox
        self._tasks: set[asyncio.Task[None]] = set()

    def obey(self, message: LoadAdapter | UnloadAdapter) -> None:
        """An answer follows a LoadAdapter when it is done."""
        if isinstance(message, UnloadAdapter):
            self._engine.unload_adapter(message.id)
            return
        task = asyncio.create_task(self._load(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, message: LoadAdapter) -> None:
        error = await load_adapter(self._engine, message.id, message.path)
        self._outbox.put_nowait(AdapterLoaded(message.id, error))


async def load_adapter(engine: Engine | Follower, adapter_id: int, path: str) -> str:
    """Loads an adapter. Returns why it can't be; "" where it was."""
    from minisgl._native import InputError

    try:
        await in_daemon_thread(lambda: engine.load_adapter(adapter_id, path), "adapter")
    except InputError as error:
        return str(error)
    except MemoryError:
        return f"{path!r}: there is not enough memory for the adapter"
    except Exception as error:
        logger.exception("unexpected error while loading an adapter")
        return f"{path!r}: unexpected error while loading: {error!r}"[:1000]
    return ""
