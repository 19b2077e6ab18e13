"""A server from start to end: its processes and tasks, its signals, and the order of it all."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import ssl
import sys
import time
from typing import Any

from minisgl.config import ServerArgs
from minisgl.engine.api import EngineStartError
from minisgl.engine.changes import Changes
from minisgl.engine.client import EngineClient
from minisgl.engine.nodes import NodeHub
from minisgl.engine.ray_cluster import RayCluster
from minisgl.engine.replicas import Replicas
from minisgl.engine.scaling import Bounds, Scaler
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.published_sampling import published_sampling
from minisgl.server.addresses import Listener
from minisgl.server.app import create_app
from minisgl.server.hook_check import check_hooks
from minisgl.server.listener import GRACEFUL_SECONDS, serve_http
from minisgl.server.state import ServerState
from minisgl.startup import counted, describe_engine
from minisgl.successors import ModelSuccessors
from minisgl.system import end_signals
from minisgl.tasks import background
from minisgl.text.formats import choose_formats
from minisgl.text.frontend import TextFrontend

logger = logging.getLogger("minisgl")


class Server:
    """A server's processes and tasks from start to end."""

    def __init__(
        self,
        args: ServerArgs,
        files: ModelFiles,
        listener: Listener,
        client: EngineClient | Replicas,
        hosts: NodeHub | RayCluster | None,
        began: float,
    ) -> None:
        self._args = args
        self._files = files
        self._listener = listener
        self._began = began
        self._client = client
        self._hosts = hosts
        self._state = ServerState(args, self._client, args.served_model_name or (files.name,))
        self._successors = ModelSuccessors(self._state)
        if isinstance(client, Replicas):
            self._state.changes = Changes(client, self._successors)
        self._scaling: asyncio.Task[None] | None = None
        self._sampling: asyncio.Task[None] | None = None  # for the board
        self._stopping = False  # a signal came
        self._stop = asyncio.Event()  # the loop knows of it
        self._http_stop = asyncio.Event()

    async def run(self) -> int:
        """Serves until a signal or the engine's failure.

        Raises ListenError, EngineStartError, ModelError.
        """
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_loop_exception)
        # Not the loop's own handlers: a second signal ends the server whatever holds up the loop.
        for number in end_signals():
            signal.signal(number, lambda number, frame: self._on_signal(number, loop))
        http = asyncio.create_task(self._serve_http())
        if not self._args.no_ui:
            self._sampling = background(self._state.board.run(), "the board's samples")
        stop = asyncio.create_task(self._stop.wait())
        try:
            start = asyncio.create_task(self._start())
            await self._first_of(start, stop, http)
            if not start.done():
                start.cancel()
                await asyncio.wait({start})
                return 0
            start.result()
            # What lives from here on to the end need not be gone through at each collection.
            gc.collect()
            gc.freeze()
            seconds = time.monotonic() - self._began
            logger.info("connections: up to %d (--max-connections)", self._listener.max_connections)
            logger.info("ready after %.2f s: %s", seconds, self._listener.urls)
            self._start_scaling()
            failed = asyncio.create_task(self._client.wait_failed())
            await self._first_of(failed, stop, http)
            failed.cancel()
            if failed.done():
                raise EngineStartError(f"the engine failed for good: {failed.result()}")
            drain = asyncio.create_task(self._drain())
            await self._first_of(drain, http)
            await drain
            return 0
        finally:
            stop.cancel()
            await self._close(http)

    async def _serve_http(self) -> None:
        """Until it is told to stop. Raises ListenError."""
        await check_hooks()
        await serve_http(
            create_app(self._state),
            self._listener,
            self._http_stop.wait,
            head_timeout=self._args.body_timeout,
        )

    async def _open_hosts(self) -> None:
        if self._hosts is None:
            return
        try:
            await self._hosts.open()
        except OSError as error:
            raise EngineStartError(
                "host 0 can't listen for the others at --dist-init-addr "
                f"{self._args.dist_init_addr}: {error}"
            ) from error

    async def _start(self) -> None:
        """Starts engine and tokenizer side by side, within one deadline."""
        await self._open_hosts()
        timeout = self._args.startup_timeout
        engine = asyncio.create_task(self._client.start(timeout))
        text = asyncio.create_task(self._start_text())
        try:
            await asyncio.gather(engine, text)
        finally:
            for task in (engine, text):
                task.cancel()
            await asyncio.wait({engine, text})
        engine.result()
        for line in describe_engine(self._args, self._client.rank_infos):
            logger.info("%s", line)

    async def _start_text(self) -> None:
        await start_text(self._state, self._files.path)
        if self._state.args.admin_api_key is not None:  # else nobody could ask for another model
            path = self._files.path
            await asyncio.to_thread(lambda: self._successors.remember(path))

    @staticmethod
    async def _first_of(*tasks: asyncio.Task[object]) -> None:
        """Waits for one of them; raises what the HTTP task, the last, died of."""
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[-1].done():
            tasks[-1].result()

    async def _drain(self) -> None:
        """No new requests; the live ones may end."""
        self._stop_scaling()
        if not self._client.num_live:
            logger.info("shutting down: there are no live requests")
        else:
            logger.info(
                "shutting down: live requests (%d) have up to %g s to end (--drain-timeout); "
                "a second signal ends them at once",
                self._client.num_live,
                self._args.drain_timeout,
            )
        if not await self._client.drain(self._args.drain_timeout):
            logger.warning(
                "the requests that were still live after %g s (--drain-timeout) were aborted",
                self._args.drain_timeout,
            )

    def _start_scaling(self) -> None:
        """Replicas come and go from now on by what there is to do, where that is asked for."""
        args, changes = self._args, self._state.changes
        if args.max_replicas and changes is not None:
            bounds = Bounds(args.min_replicas, args.max_replicas, args.drain_timeout)
            self._scaling = background(
                Scaler(changes, bounds).run(), "the number of replicas by what there is to do"
            )

    def _stop_scaling(self) -> None:
        if self._scaling is not None:
            self._scaling.cancel()

    async def _close(self, http: asyncio.Task[None]) -> None:
        self._stop_scaling()
        if self._sampling is not None:
            self._sampling.cancel()
        self._http_stop.set()
        await asyncio.wait({http}, timeout=GRACEFUL_SECONDS + 1)
        http.cancel()
        await asyncio.wait({http}, timeout=1)
        if self._state.text is not None:
            await self._state.text.close()
        if self._state.changes is not None:
            await self._state.changes.close()
        await self._client.close()
        if self._hosts is not None:
            await self._hosts.close()

    def _on_signal(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        """Runs between any two steps of the main thread."""
        if not self._stopping:
            self._stopping = True
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(self._stop.set)
            return
        if number == signal.SIGHUP:  # a terminal that ends sends several; they say one thing
            return
        try:
            self._client.kill()
            if self._state.text is not None:
                self._state.text.kill()
            sys.stderr.flush()
        finally:
            os._exit(128 + number)


async def start_text(state: ServerState, model_path: str) -> None:
    """Loads a server's tokenizer, and what the model publishes of sampling. Raises ModelError."""
    began, args = time.monotonic(), state.args
    if args.generation_config == "auto":
        state.sampling_defaults = await asyncio.to_thread(published_sampling, model_path)
    try:
        state.text = await asyncio.wait_for(
            TextFrontend.start(
                model_path,
                chat_template=args.chat_template,
                num_tokenizer=args.num_tokenizer,
                answer_memory_bytes=args.answer_memory_bytes,
            ),
            args.startup_timeout,
        )
    except asyncio.TimeoutError:
        raise ModelError(
            f"the tokenizer was not ready within {args.startup_timeout:g} s; "
            "a longer --startup-timeout gives it more"
        ) from None
    state.formats = choose_formats(
        args.tool_call_parser, args.reasoning_parser, state.text.tokenizer.chat_template
    )
    logger.info("%s", state.formats)
    num = args.num_tokenizer
    where = counted(num, "process", "processes") if num else "server"
    logger.info("loading the tokenizer (%s): %.2f s", where, time.monotonic() - began)


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Connections that are cut at the end: asyncio's streams ask a cancelled task for its exception.
    # Clients that speak no TLS where it is spoken are nobody's fault here.
    if not isinstance(context.get("exception"), (asyncio.CancelledError, ssl.SSLError)):
        loop.default_exception_handler(context)
