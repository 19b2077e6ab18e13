"""What may be set of where the model runs: ranks, hosts, replicas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from minisgl.config.option import OptionError, key_fault, option, parse_address
from minisgl.distributed_info import DistributedInfo

CommKind = Literal["auto", "nccl", "one-shot", "torch", "shm"]
COMM_KINDS: tuple[str, ...] = get_args(CommKind)
Routing = Literal["prefix", "least", "round"]
ROUTINGS: tuple[Routing, ...] = get_args(Routing)
MAX_RANKS = 1024
MIN_SECRET_LENGTH = 16  # the least for --dist-secret: a proof of knowing it crosses the network


@dataclass(frozen=True)
class PlacementSettings:
    """A part of ServerArgs, which is what makes and checks it."""

    tp_info: DistributedInfo = option(  # noqa: RUF009 - a field, as all of them
        DistributedInfo(0, 1),
        "ranks that the model is split over, on all hosts together",
        group="tensor parallelism",
        flag="tp",
    )
    comm: str = option(
        "auto",
        "how ranks add up their parts: " + ", ".join(COMM_KINDS) + "; auto: by the devices",
        group="tensor parallelism",
        choices=COMM_KINDS,
        metavar="HOW",
    )
    nnodes: int = option(
        1, "hosts that the ranks are on", group="tensor parallelism", bounds=(1, 1024)
    )
    node_rank: int = option(
        0,
        "number of this host; 0 is the one that serves",
        group="tensor parallelism",
        bounds=(0, 1023),
    )
    dist_init_addr: str | None = option(
        None,
        "address of host 0, which also listens at the next two ports",
        group="tensor parallelism",
        metavar="HOST:PORT",
    )
    dist_secret: str | None = option(
        None,
        "secret that all hosts share (better set in the environment)",
        group="tensor parallelism",
        metavar="SECRET",
        secret=True,
    )

    replicas: int = option(
        1,
        "engines of --tp ranks each that serve the model side by side, on GPUs or cores of their "
        "own; where one is lost its streams go on at the others",
        group="replicas",
        alias="dp",
        bounds=(1, MAX_RANKS),
    )
    admin_api_key: str | None = option(
        None,
        "key with which /admin/replicas adds, removes and restarts replicas while the server runs "
        "(better in the environment); without it there is no such page",
        group="replicas",
        metavar="KEY",
        secret=True,
    )
    max_replicas: int = option(
        0,
        "most replicas that the server adds on its own, where all have had too much to do for some "
        "seconds; 0: it adds and removes none",
        group="replicas",
        bounds=(0, MAX_RANKS),
    )
    min_replicas: int = option(
        1,
        "fewest replicas that it leaves where less would do, with --max-replicas",
        group="replicas",
        bounds=(1, MAX_RANKS),
    )
    join: str | None = option(
        None,
        "this host serves nobody: its GPUs or cores are for replicas of the server that listens at "
        "this address (its --dist-init-addr), which adds them while it runs; --replicas: as many "
        "as the cores are divided among",
        group="replicas",
        metavar="HOST:PORT",
    )
    cluster: str | None = option(
        None,
        "ray: the Ray cluster that this host belongs to or RAY_ADDRESS names, or ray://HOST:PORT: "
        "replicas run there, as actors, with --threads CPUs per rank (1 without), and with a GPU "
        "per rank where the cluster has any",
        group="replicas",
        metavar="ray|ray://...",
    )
    routing: str = option(
        "prefix",
        "which of several replicas serves a request: prefix: the one with the most of its prompt "
        "for its load; least: the one with the least to do; round: one after the other",
        group="replicas",
        choices=ROUTINGS,
        metavar="HOW",
    )

    @property
    def tp(self) -> int:
        """Ranks that the model is split over: the size in `tp_info`."""
        return self.tp_info.size

    def _check_replicas(self) -> None:
        if self.replicas > 1 and self.nnodes > 1:
            raise OptionError(
                "replicas", f"must be 1 where --nnodes is more than 1, got {self.replicas}"
            )
        if self.max_replicas and not self.min_replicas <= self.replicas <= self.max_replicas:
            raise OptionError(
                "replicas",
                f"must be between --min-replicas ({self.min_replicas}) and --max-replicas "
                f"({self.max_replicas}), got {self.replicas}",
            )
        if self.max_replicas and self.nnodes > 1:
            raise OptionError("max_replicas", "can't be given where --nnodes is more than 1")
        if self.replicas * self.tp > MAX_RANKS:
            raise OptionError(
                "replicas",
                f"must have at most {MAX_RANKS} ranks together, got {self.replicas} of {self.tp}",
            )
        if self.cluster is not None:
            if self.cluster != "ray" and not self.cluster.startswith("ray://"):
                raise OptionError(
                    "cluster", f"must be ray or ray://HOST:PORT, got {self.cluster!r}"
                )
            if self.nnodes > 1 or self.join is not None:
                other = "--join is given" if self.join is not None else "--nnodes is more than 1"
                raise OptionError("cluster", f"can't be given where {other}")
        if self.join is not None:
            parse_address(self.join, "join")
            if self.nnodes > 1:
                raise OptionError("join", "can't be given where --nnodes is more than 1")
            self._check_secret("--join is given")
        if self.admin_api_key is not None and (fault := key_fault(self.admin_api_key)):
            raise OptionError("admin_api_key", fault)

    def _check_ranks(self) -> None:
        if not isinstance(self.tp_info, DistributedInfo):
            raise OptionError("tp_info", f"must be a DistributedInfo, got {self.tp_info!r}")
        if self.tp > MAX_RANKS:
            raise OptionError("tp_info", f"must have at most {MAX_RANKS} ranks, got {self.tp}")
        if self.tp % self.nnodes:
            raise OptionError(
                "tp_info",
                f"must have a multiple of --nnodes ({self.nnodes}) ranks, got {self.tp}",
            )

    def _check_hosts(self) -> None:
        if self.node_rank >= self.nnodes:
            raise OptionError(
                "node_rank", f"must be below --nnodes ({self.nnodes}), got {self.node_rank}"
            )
        if self.nnodes == 1:
            if self.takes_guests:
                parse_address(str(self.dist_init_addr))
                self._check_secret("hosts may join")
            elif self.dist_init_addr is not None and self.join is None and self.cluster is None:
                raise OptionError(
                    "dist_init_addr",
                    "needs --nnodes, the number of hosts that share the model, or --admin-api-key, "
                    "with which the replicas of hosts that join are added",
                )
            return
        if self.dist_init_addr is None:
            raise OptionError("dist_init_addr", "must be given where --nnodes is more than 1")
        parse_address(self.dist_init_addr)
        self._check_secret("--nnodes is more than 1")
        if self.comm == "shm":
            raise OptionError(
                "comm", f"shm joins the ranks of one host, and --nnodes is {self.nnodes}"
            )

    @property
    def takes_guests(self) -> bool:
        """Whether hosts may join: there is an address for it, and somebody who adds replicas."""
        addressed = self.dist_init_addr is not None and self.admin_api_key is not None
        return addressed and self.nnodes == 1 and self.join is None and self.cluster is None

    def _check_secret(self, why: str) -> None:
        if not self.dist_secret:
            raise OptionError(
                "dist_secret",
                f"must be given where {why} "
                "(MINISGL_DIST_SECRET keeps it out of the list of processes)",
            )
        if len(self.dist_secret) < MIN_SECRET_LENGTH:
            raise OptionError(
                "dist_secret",
                f"must have at least {MIN_SECRET_LENGTH} characters, got "
                f"{len(self.dist_secret)}; `openssl rand -hex 16` makes one",
            )
