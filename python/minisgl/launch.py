"""minisgl-serve: starts the processes, watches them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import logging
import os
import signal
import ssl
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop
from setproctitle import setproctitle

from minisgl.config import OptionError, ServerArgs, parse_address
from minisgl.engine.agent import Home, NodeAgent
from minisgl.engine.api import EngineStartError
from minisgl.engine.changes import Changes
from minisgl.engine.client import EngineClient
from minisgl.engine.joined_site import guest_number, report_of
from minisgl.engine.kv_events import KvEventsError
from minisgl.engine.local_ranks import RANK_COMMAND
from minisgl.engine.machine import read_machine
from minisgl.engine.nodes import NodeHub
from minisgl.engine.ray_cluster import RayCluster, Wish
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.scaling import Bounds, Scaler
from minisgl.engines import make_engines, open_kv_events
from minisgl.flags import mistyped_variables, parse_args
from minisgl.ipc.messages import NamedModel, PhaseReport
from minisgl.log import SERVER, start_logging
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.published_sampling import published_sampling
from minisgl.model_files.source import resolve_model
from minisgl.server.addresses import Listener, ListenError, open_listener, read_api_keys
from minisgl.server.app import create_app
from minisgl.server.hook_check import check_hooks
from minisgl.server.listener import (
    GRACEFUL_SECONDS,
    serve_http,
)
from minisgl.server.state import ServerState
from minisgl.startup import PhaseLog, counted, describe_engine
from minisgl.successors import ModelSuccessors
from minisgl.system import (
    SystemLimitError,
    check_threads,
    connection_limit,
    open_standard_streams,
    raise_file_limit,
)
from minisgl.tasks import background
from minisgl.text.formats import check_names, choose_formats
from minisgl.text.frontend import TextFrontend
from minisgl.text.heap import return_large_blocks

SPARE_REPLICAS = 8  # that may be added while the server runs

logger = logging.getLogger("minisgl")


def launch_server(
    args: ServerArgs | None = None,
    *,
    run_shell: bool = False,
    rank_command: Sequence[str] = RANK_COMMAND,
    restart: RestartPolicy | None = None,
) -> int:
    """The command minisgl-serve: serves until a signal or, with `run_shell` or `args.shell`, talks
    to the model in this terminal. Without `args` the command line and the environment are read, and
    a bad flag ends the process (SystemExit).

    Returns the exit status: 0 after a clean end, 1 with a sentence on the screen when the server
    can't start or its engine failed for good. ValueError where `args.tp_info` isn't rank 0: a
    server starts all ranks.

    Belongs in the main thread, for the signals, of a process that is a server from then on, and
    named so. `rank_command`: the rank program (for tests). `restart`: what happens when the engine
    dies.
    """
    began = time.monotonic()
    open_standard_streams()
    mistyped = list(mistyped_variables(os.environ)) if args is None else []
    if args is None:
        args = parse_args()
    elif not isinstance(args, ServerArgs):
        raise TypeError(
            f"launch_server() takes ServerArgs, got {args!r}; run_shell=True starts the shell"
        )
    if not args.tp_info.is_primary():
        raise OptionError("tp_info", f"must be rank 0 to start a server, got {args.tp_info}")
    if run_shell or args.shell:
        from minisgl.offline import shell

        return shell.run_shell(args)
    setproctitle(SERVER)
    return_large_blocks()
    start_logging(args.log_level, args.log_format)
    for variable, meant in mistyped:
        logger.warning("the environment variable %s has no effect: %s has one", variable, meant)
    return _serve(args, rank_command, restart, began)


def _serve(
    args: ServerArgs, rank_command: Sequence[str], restart: RestartPolicy | None, began: float
) -> int:
    try:
        check_names(args.tool_call_parser, args.reasoning_parser)
        children = _count_children(args)
        raise_file_limit()
        # Where replicas may be added, files for some are left.
        spare = 0 if args.admin_api_key is None else SPARE_REPLICAS * args.tp
        room = connection_limit(children + spare)
        check_threads(children)
        if args.node_rank > 0 or args.join is not None:
            return _run_node(args, rank_command)
        args = dataclasses.replace(args, api_key=read_api_keys(args), api_key_file=None)
        with (
            contextlib.closing(open_listener(args, room)) as listener,
            open_kv_events(args) as kv_events,
        ):
            files = _find_model(args)
            listener.listen()
            logger.info(
                "model: %s (%s; --model) at %s, found after %.2f s",
                files.name,
                "the default, because none was named" if args.model is None else "asked for",
                files.path,
                time.monotonic() - began,
            )
            hosts = _make_hosts(args, files, rank_command)
            client = make_engines(args, files, hosts, rank_command, restart, kv_events)
            return uvloop.run(Server(args, files, listener, client, hosts, began).run())
    except (
        ListenError,
        ModelError,
        EngineStartError,
        KvEventsError,
        SystemLimitError,
    ) as error:
        _say_failure(args, str(error))
        return 1
    except KeyboardInterrupt:  # before there was anything to end
        return 128 + signal.SIGINT


def _count_children(args: ServerArgs) -> int:
    """The processes that this host's server has: its ranks, tokenizers and their detokenizer."""
    tokenizers = args.num_tokenizer + 1 if args.num_tokenizer else 0
    if args.cluster is not None:
        return 1 + tokenizers
    return args.replicas * args.tp // args.nnodes + tokenizers


def _make_hosts(
    args: ServerArgs, files: ModelFiles, rank_command: Sequence[str]
) -> NodeHub | RayCluster | None:
    """The other hosts, where there are any."""
    if args.cluster is not None:
        return RayCluster(
            Wish(
                address=args.cluster,
                model=args.model,
                revision=files.commit or args.revision,
                weights=args.load_format != "dummy",
                ranks=args.tp,
                cpus_per_rank=args.num_threads or 1,
                device=args.device,
                show_output=args.log_format == "text",
                command=() if rank_command == RANK_COMMAND else tuple(rank_command),
                log_level=args.log_level,
                log_format=args.log_format,
            )
        )
    if args.dist_init_addr is None or args.dist_secret is None:
        return None
    if args.nnodes == 1 and not args.takes_guests:
        return None
    host, port = parse_address(args.dist_init_addr)
    return NodeHub(host, port, args.dist_secret, args.nnodes, guests=args.takes_guests)


def _find_model(args: ServerArgs) -> ModelFiles:
    """Raises ModelError."""
    log = PhaseLog()

    def report(done: int, total: int) -> None:
        log.report(PhaseReport(phase=f"downloading {args.model}", done=done, total=total))

    text = args.log_format == "text"  # a bar is no line of another format
    return resolve_model(
        args.model,
        revision=args.revision,
        weights=args.needs_weights,
        show_progress=text,
        on_progress=None if text and sys.stderr.isatty() else report,
    )


def _say_failure(args: ServerArgs, sentence: str) -> None:
    """The last line of a server that can't go on."""
    if args.log_format == "json":
        logger.error("%s", sentence)
    else:
        print(f"minisgl-serve: error: {sentence}", file=sys.stderr, flush=True)


def _run_node(args: ServerArgs, command: Sequence[str]) -> int:
    """A host that doesn't serve: it has ranks only, for as long as another one needs them."""
    assert args.dist_secret is not None
    number, report = args.node_rank, None
    try:

        def find(named: NamedModel) -> str:
            """Another model than that of the command, on this host."""
            return resolve_model(
                named.model,
                revision=named.revision,
                weights=args.needs_weights,
                show_progress=False,
            ).path

        home = Home(_find_model(args).path, command, find)
        if args.join is not None:
            report = report_of(read_machine(args.device), args.replicas)
            number = guest_number(args.dist_secret, report.name)
        agent = NodeAgent(
            home,
            parse_address(args.join or args.dist_init_addr or ""),
            args.dist_secret,
            number,
            args.startup_timeout,
            report,
        )
        failure = uvloop.run(_until_signal(agent.run()))
    except ModelError as error:
        failure = str(error)
    if failure:
        _say_failure(args, failure)
        return 1
    return 0


async def _until_signal(work: Coroutine[Any, Any, str]) -> str:
    """What the work returns, or "" when a signal came first."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    for number in _end_signals():
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return ""


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
        for number in _end_signals():
            signal.signal(number, lambda number, frame: self._on_signal(number, loop))
        http = asyncio.create_task(self._serve_http())
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


def _end_signals() -> tuple[signal.Signals, ...]:
    """Signals at which a server ends in order. SIGHUP, which tells that the terminal has gone, is
    one of them unless it was ignored from the beginning, as nohup does it.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _on_loop_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # Connections that are cut at the end: asyncio's streams ask a cancelled task for its exception.
    # Clients that speak no TLS where it is spoken are nobody's fault here.
    if not isinstance(context.get("exception"), (asyncio.CancelledError, ssl.SSLError)):
        loop.default_exception_handler(context)
