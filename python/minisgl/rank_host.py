"""A host that serves nobody: it has ranks, for as long as a server elsewhere needs them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import uvloop

from minisgl.config import ServerArgs, parse_address
from minisgl.engine.agent import Home, NodeAgent
from minisgl.engine.joined_site import guest_number, report_of
from minisgl.engine.machine import read_machine
from minisgl.ipc.messages import NamedModel
from minisgl.model_files.files import ModelFiles
from minisgl.model_files.source import resolve_model
from minisgl.system import end_signals


def run_node(args: ServerArgs, files: ModelFiles, command: Sequence[str]) -> str:
    """Has ranks of the model for the server that `args` name, with their program, until that ends
    or a signal comes (returns ""). Returns a sentence where it has been out of reach for too long.
    """
    assert args.dist_secret is not None
    number, report = args.node_rank, None

    def find(named: NamedModel) -> str:
        """Another model than that of the command, on this host."""
        return resolve_model(
            named.model,
            revision=named.revision,
            weights=args.needs_weights,
            show_progress=False,
        ).path

    if args.join is not None:
        own = NamedModel(args.model, files.commit) if files.commit else None
        report = report_of(read_machine(args.device), args.replicas, own)
        number = guest_number(args.dist_secret, report.name)
    agent = NodeAgent(
        Home(files.path, command, find),
        parse_address(args.join or args.dist_init_addr or ""),
        args.dist_secret,
        number,
        args.startup_timeout,
        report,
    )
    return uvloop.run(_until_signal(agent.run()))


async def _until_signal(work: Coroutine[Any, Any, str]) -> str:
    """What the work returns, or "" when a signal came first."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    for number in end_signals():
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return ""
