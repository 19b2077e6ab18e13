"""The engine that a server is told to have: a group of ranks, or several replicas of it."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from minisgl.config import MAX_WAITING, ServerArgs
from minisgl.engine.admission import Admission
from minisgl.engine.client import EngineClient
from minisgl.engine.host_ranks import HostRanks
from minisgl.engine.joined_site import JoinedSite
from minisgl.engine.launcher import MakeLauncher
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.machine import read_machine
from minisgl.engine.nodes import NodeHub
from minisgl.engine.peers import ALONE, Peers
from minisgl.engine.placement import Accountant
from minisgl.engine.ray_cluster import RayCluster
from minisgl.engine.ray_ranks import RaySite
from minisgl.engine.replicas import Replicas
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.router import Router
from minisgl.engine.site import LocalSite, Lot, Site
from minisgl.ipc.messages import EngineOptions
from minisgl.startup import PhaseLog, counted, engine_options

if TYPE_CHECKING:
    from minisgl.config import Routing

logger = logging.getLogger(__name__)


def make_engines(
    args: ServerArgs,
    model_path: str,
    hosts: NodeHub | RayCluster | None,
    command: Sequence[str],
    restart: RestartPolicy | None,
) -> EngineClient | Replicas:
    """What serves the model, not started yet. `hosts`: the other hosts, where there are any.
    `command`: the rank program.
    """
    options = engine_options(args, model_path)
    if isinstance(hosts, RayCluster):
        logger.info(
            "replicas: %d (--replicas) in the cluster (--cluster %s)", args.replicas, args.cluster
        )
        return _make_replicas(args, options, RaySite(hosts), restart)
    if args.replicas > 1 or args.admin_api_key is not None:
        site: Site = _local_site(args, command)
        if hosts is not None:
            site = JoinedSite(site, hosts, args.tp, args.num_threads)
        return _make_replicas(args, options, site, restart)
    launcher: MakeLauncher = functools.partial(LocalRanks, command)
    if hosts is not None:
        launcher = functools.partial(HostRanks, hosts, command)
    # The client refuses what is too much; the engine only has to take more.
    most = min(2 * (args.max_running + args.max_waiting), MAX_WAITING)
    options = dataclasses.replace(options, max_waiting=most)
    return _make_client(args, options, launcher, restart, ALONE)


def _make_client(
    args: ServerArgs,
    options: EngineOptions,
    launcher: MakeLauncher,
    restart: RestartPolicy | None,
    peers: Peers,
) -> EngineClient:
    return EngineClient(
        options,
        size=args.tp,
        comm=args.comm,
        step_timeout=args.step_timeout,
        max_waiting=args.max_waiting,
        max_waiting_tokens=args.max_waiting_tokens,
        launcher=launcher,
        restart=restart,
        on_phase=PhaseLog("" if peers is ALONE else f"{peers.name}: ").report,
        peers=peers,
    )


def _local_site(args: ServerArgs, command: Sequence[str]) -> LocalSite:
    machine = read_machine(args.device)
    num_gpus = counted(len(machine.gpus), "GPU", "GPUs") if machine.gpus else "no GPU"
    logger.info(
        "replicas: %d (--replicas) of %s (--tp) on this host, which has %s and %s for them",
        args.replicas,
        counted(args.tp, "rank", "ranks"),
        num_gpus,
        counted(len(machine.cores), "core", "cores"),
    )
    return LocalSite(Accountant(machine, args.tp, args.replicas, args.num_threads), command)


def _make_replicas(
    args: ServerArgs, options: EngineOptions, site: Site, restart: RestartPolicy | None
) -> Replicas:
    # One that is left alone has the requests of all.
    options = dataclasses.replace(options, max_waiting=MAX_WAITING)

    def make_engine(number: int, lot: Lot, peers: Peers) -> EngineClient:
        return _make_client(args, lot.fit(options), lot.launcher, restart, peers)

    return Replicas(
        make_engine,
        site,
        args.replicas,
        Admission(args.max_waiting, args.max_waiting_tokens),
        Router(cast("Routing", args.routing)),
    )
