"""minisgl-serve: from the settings to a server that runs, or to why there is none."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

import uvloop
from setproctitle import setproctitle

from minisgl.config import OptionError, ServerArgs, parse_address
from minisgl.engine.api import EngineStartError
from minisgl.engine.kv_events import KvEventsError
from minisgl.engine.local_ranks import RANK_COMMAND
from minisgl.engine.nodes import NodeHub
from minisgl.engine.ray_cluster import RayCluster, Wish
from minisgl.engine.revival import RestartPolicy
from minisgl.engines import make_engines, open_kv_events
from minisgl.flags import mistyped_variables, parse_args
from minisgl.ipc.messages import PhaseReport
from minisgl.log import SERVER, start_logging
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.source import resolve_model
from minisgl.rank_host import run_node
from minisgl.server.addresses import ListenError, open_listener, read_api_keys
from minisgl.serving import Server
from minisgl.startup import PhaseLog
from minisgl.system import (
    SystemLimitError,
    check_threads,
    connection_limit,
    open_standard_streams,
    raise_file_limit,
)
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
        children = _count_children(args)
        raise_file_limit()
        # Where replicas may be added, files for some are left.
        spare = 0 if args.admin_api_key is None else SPARE_REPLICAS * args.tp
        room = connection_limit(children + spare)
        check_threads(children)
        if args.node_rank > 0 or args.join is not None:
            failure = run_node(args, _find_model(args), rank_command)
            if failure:
                _say_failure(args, failure)
            return 1 if failure else 0
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
