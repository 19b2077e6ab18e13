"""The engine that a server is told to have: a group of ranks, or several replicas of it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from minisgl.config import MAX_WAITING, ServerArgs
from minisgl.engine.adapters import AdapterBook
from minisgl.engine.admission import Admission
from minisgl.engine.client import EngineClient, OnBlocks
from minisgl.engine.host_ranks import HostRanks
from minisgl.engine.joined_site import JoinedSite
from minisgl.engine.kv_events import KvEventPublisher
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
from minisgl.engine.served_model import ServedModel
from minisgl.engine.site import LocalSite, Lot, Site
from minisgl.ipc.messages import EngineOptions, NamedModel
from minisgl.model_files.files import ModelFiles
from minisgl.startup import PhaseLog, counted, engine_options

if TYPE_CHECKING:
    from minisgl.config import Routing

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def open_kv_events(args: ServerArgs) -> Iterator[KvEventPublisher | None]:
    """Where others hear of the prefix caches; None where nobody is to. Raises KvEventsError."""
    if args.kv_events_addr is None:
        yield None
        return
    addr, replay_addr = args.kv_events_addr, args.kv_events_replay_addr
    with contextlib.closing(KvEventPublisher(addr, replay_addr, args.kv_events_topic)) as publisher:
        logger.info("KV events at %s, replays at %s", addr, replay_addr or "no address")
        yield publisher


def make_engines(
    args: ServerArgs,
    files: ModelFiles,
    hosts: NodeHub | RayCluster | None,
    command: Sequence[str],
    restart: RestartPolicy | None,
    kv_events: KvEventPublisher | None = None,
) -> EngineClient | Replicas:
    """What serves the model, not started yet. `hosts`: the other hosts, where there are any.
    `command`: the rank program. `kv_events` hears of all prefix caches.
    """

    def on_blocks(number: int) -> OnBlocks | None:
        return None if kv_events is None else functools.partial(kv_events.publish, number)

    options = engine_options(args, files.path)
    adapters = AdapterBook(args.adapters, enabled=args.enable_lora)
    # Each host was started with the model, and may call it something else.
    model = dataclasses.replace(
        served_model(files.path, NamedModel(args.model, args.revision), files.commit), named=None
    )
    if isinstance(hosts, RayCluster):
        logger.info(
            "replicas: %d (--replicas) in the cluster (--cluster %s)", args.replicas, args.cluster
        )
        return _make_replicas(args, model, options, RaySite(hosts), restart, on_blocks, adapters)
    if args.replicas > 1 or args.admin_api_key is not None or args.max_replicas:
        site: Site = _local_site(args, command)
        if hosts is not None:
            site = JoinedSite(site, hosts, args.tp, args.num_threads)
        return _make_replicas(args, model, options, site, restart, on_blocks, adapters)
    launcher: MakeLauncher = functools.partial(LocalRanks, command)
    if hosts is not None:
        launcher = functools.partial(HostRanks, hosts, command)
    # The client refuses what is too much; the engine only has to take more.
    most = min(2 * (args.max_running + args.max_waiting), MAX_WAITING)
    options = dataclasses.replace(options, max_waiting=most)
    return _make_client(args, options, launcher, restart, ALONE, on_blocks(0), adapters)


def _make_client(
    args: ServerArgs,
    options: EngineOptions,
    launcher: MakeLauncher,
    restart: RestartPolicy | None,
    peers: Peers,
    on_blocks: OnBlocks | None,
    adapters: AdapterBook,
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
        on_blocks=on_blocks,
        peers=peers,
        adapters=adapters,
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
    args: ServerArgs,
    first: ServedModel,
    options: EngineOptions,
    site: Site,
    restart: RestartPolicy | None,
    on_blocks: Callable[[int], OnBlocks | None],
    adapters: AdapterBook,
) -> Replicas:
    """`first`: the model that they begin with."""
    # One that is left alone has the requests of all.
    options = dataclasses.replace(options, max_waiting=MAX_WAITING)

    def make_engine(number: int, lot: Lot, peers: Peers, model: ServedModel) -> EngineClient:
        fit = dataclasses.replace(lot.fit(options), model_path=model.path)
        return _make_client(
            args, fit, lot.launcher(model), restart, peers, on_blocks(number), adapters
        )

    return Replicas(
        make_engine,
        site,
        args.replicas,
        Admission(args.max_waiting, args.max_waiting_tokens),
        Router(cast("Routing", args.routing)),
        first,
        adapters,
    )


def served_model(path: str, named: NamedModel, commit: str) -> ServedModel:
    """The model at a path of this host. Other hosts look for the commit that its revision means
    now, where it is of a Hugging Face id: a branch may mean another one when they do.
    """
    revision = commit or named.revision or ""
    return ServedModel(
        path, named.model or Path(path).stem, revision, NamedModel(named.model, revision or None)
    )
