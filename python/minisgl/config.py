"""What may be set: each option once, with its default, its bounds and its help. flags.py reads it
from the command line and the environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from minisgl.distributed_info import DistributedInfo

KV_DTYPES = ("auto", "f32", "f16", "bf16", "int8", "fp8")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")
GENERATION_CONFIGS = ("auto", "none", "vllm")
CommKind = Literal["auto", "nccl", "one-shot", "torch", "shm"]
COMM_KINDS: tuple[str, ...] = get_args(CommKind)
Routing = Literal["prefix", "least", "round"]
ROUTINGS: tuple[Routing, ...] = get_args(Routing)
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
MAX_WAITING = 2**20
MAX_RANKS = 1024
STEP_TIMEOUT = 30.0  # seconds
MIN_SECRET_LENGTH = 16  # the least for --dist-secret: a proof of knowing it crosses the network
DAY = 86400.0  # seconds
_ROOT_PATH = re.compile(r"(/[^/?#\s]+)+")
_ZMQ_ADDRESS = re.compile(r"tcp://[^/\s]+:\d{1,5}|ipc://\S+")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")


class OptionError(ValueError):
    """An option has a value that it can't have. `option` is the field's name, `sentence` what is
    wrong with it.
    """

    def __init__(self, option: str, sentence: str) -> None:
        super().__init__(f"{option} {sentence}")
        self.option = option
        self.sentence = sentence


def option(
    default: Any,
    help: str,
    *,
    group: str = "engine",
    bounds: tuple[float, float] = (0, 2**31 - 1),
    choices: Sequence[str] = (),
    metavar: str = "",
    flag: str = "",
    alias: str = "",
    empty_is_none: bool = True,
    secret: bool = False,
) -> Any:
    """A field that describes itself: its default, its help, its group on the command line, the
    bounds of a number or the choices of a word. `flag` where it isn't the field's name, `alias` for
    a second one. The default
    () stands for any number of texts. The empty text is None where the default is None, and none of
    several texts, unless `empty_is_none` is false. A secret isn't shown.
    """
    described: dict[str, Any] = {"help": help, "group": group, "metavar": metavar}
    described |= {"flag": flag, "alias": alias}
    if choices:
        described["choices"] = choices
    elif isinstance(default, (int, float)) and not isinstance(default, bool):
        described["bounds"] = bounds
    described["empty_is_none"] = default in (None, ()) and empty_is_none
    return field(default=default, metadata=described, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What may be set of the engine, described once: the flags of `minisgl-serve`, the arguments of
    LLM and the messages to the ranks are these fields. 0 and "auto" are chosen at start.

    Raises OptionError with the field, its range and the value when something is out of bounds.
    """

    num_threads: int = option(
        0,
        "engine threads; 0: one for each core that this process may use",
        bounds=(0, 1024),
        flag="threads",
    )
    kv_dtype: str = option(
        "auto",
        "KV cache type: "
        + ", ".join(KV_DTYPES)
        + "; int8 (CPU) and fp8 (GPU) take half of f16's memory",
        choices=KV_DTYPES,
        metavar="TYPE",
    )
    kv_cache_tokens: int = option(0, "tokens that the KV cache holds; 0: as many as memory allows")
    kv_host_bytes: int = option(
        0,
        "pinned memory of each host for cached prefixes that GPUs have no room for, divided evenly "
        "among the replicas and ranks there; they come back faster than they are computed",
        bounds=(0, 2**44),
        metavar="BYTES",
    )
    max_model_len: int = option(
        0, "most tokens of a request, prompt and output, at least 2; 0: the model's limit"
    )
    page_size: int = option(16, "tokens per KV page", bounds=(1, 1024))
    max_running: int = option(256, "most sequences in one step", bounds=(1, 65536))
    max_penalized: int = option(
        0,
        "most sequences with penalties in one step, whose counts take 4 bytes for each token of "
        "the vocabulary; 0: as many as --max-running, within 256 MiB",
        bounds=(0, 65536),
    )
    max_batch_tokens: int = option(
        0, "most tokens in one step; 0: 512 on a CPU, 8192 on a GPU", bounds=(0, 65536)
    )
    device: str = option(
        "auto",
        ", ".join(DEVICES) + "; auto: a GPU where there is one",
        choices=DEVICES,
        metavar="DEVICE",
    )
    memory_fraction: float = option(
        0.9,
        "share of the memory left by the weights that KV cache and workspace may take",
        bounds=(0.01, 1.0),
        metavar="SHARE",
    )
    num_pages: int = option(0, "pages of the KV cache, in place of --kv-cache-tokens")
    disable_cuda_graph: bool = option(False, "don't record decode steps as CUDA graphs")
    disable_overlap: bool = option(
        False, "plan each step after the end of the one before (for debugging)"
    )
    disable_prefix_cache: bool = option(
        False, "compute every prompt anew, also where requests begin alike"
    )
    load_format: str = option(
        "auto",
        "auto, or dummy: random weights (for measuring)",
        choices=LOAD_FORMATS,
        metavar="FORMAT",
    )
    target_itl_ms: float = option(
        0.0,
        "milliseconds between two tokens of an answer, which long prompts beside it are cut for; "
        "0: prompts are computed as fast as possible",
        bounds=(0, 60_000),
        metavar="MS",
    )
    max_waiting: int = option(
        1024,
        "requests that may wait; one more is refused with 429, but for a quarter more of API keys "
        "that have less than their part",
        bounds=(0, MAX_WAITING),
    )

    def __post_init__(self) -> None:
        for described in fields(self):
            value, metadata = getattr(self, described.name), described.metadata
            _check_text(described.name, value, shown=described.repr)
            if "bounds" in metadata:
                _check_bounds(described.name, value, *metadata["bounds"])
            elif "choices" in metadata:
                _check_choice(described.name, value, metadata["choices"])
        if self.page_size & (self.page_size - 1):
            raise OptionError("page_size", f"must be a power of two, got {self.page_size}")
        if self.max_model_len == 1:  # no room for a prompt and a token of output
            raise OptionError("max_model_len", "must be 0 or at least 2, got 1")
        for name in ("kv_cache_tokens", "num_pages"):
            if self.page_size == getattr(self, name) == 1:
                raise OptionError(name, "must be 0 or at least 2 where --page-size is 1, got 1")


def _check_text(name: str, value: object, *, shown: bool) -> None:
    """Bytes of the command line or the environment that are not UTF-8 arrive as halves of pairs of
    surrogates, which nothing can write or send. Other values than texts pass.
    """
    for text in value if isinstance(value, tuple) else (value,):
        try:
            str(text).encode()
        except UnicodeEncodeError:
            got = f", got {text!a}" if shown else ""
            raise OptionError(name, f"must be UTF-8{got}") from None


def key_fault(key: str) -> str:
    """Why no client could send this API key in a header; "" for one that can be sent."""
    if not key:
        return "must not be empty"
    if any(character < " " or character == "\x7f" for character in key):
        return "must not have control characters, such as an end of line: no header can carry them"
    if key != key.strip(" "):
        return "must not begin or end with a space: a header loses it"
    return ""


def _check_bounds(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise OptionError(name, f"must be a number, got {value!r}")
    if not (low <= value <= high):  # also refuses NaN
        limit = f"at least {_shown(low)}"
        if high != math.inf:
            limit = f"between {_shown(low)} and {_shown(high)}"
        raise OptionError(name, f"must be {limit}, got {value}")


def _shown(bound: float) -> str:
    """A whole number has all its digits."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise OptionError(name, f"must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class ServerArgs(EngineSettings):
    """Everything that can be set about a server, the engine's settings among it. 0 means "chosen at
    start", and the start says what was chosen.

    Raises OptionError with the field, its range and the value when something is out of bounds.
    """

    model: str | None = option(
        None,
        "Hugging Face id (with :Q4_K_M for one GGUF file of several), folder (config.json + "
        "safetensors) or .gguf file",
        group="model",
    )
    revision: str | None = option(
        None, "branch, tag or commit of the Hugging Face id", group="model"
    )
    served_model_name: tuple[str, ...] = option(
        (),
        "names of the model in /v1/models; requests may say any of them, answers say the first",
        group="model",
        metavar="NAME",
    )
    chat_template: str | None = option(
        None,
        "Jinja file that replaces the model's chat template",
        group="model",
        metavar="FILE",
    )
    tool_call_parser: str = option(
        "auto",
        "form of the model's tool calls: auto (by the chat template), none (requests with tools "
        "are refused), or its name, such as hermes",
        group="model",
        metavar="NAME",
    )
    reasoning_parser: str = option(
        "auto",
        "form of the model's thoughts: auto (by the chat template), none (they are a part of the "
        "content), or its name, such as qwen3",
        group="model",
        metavar="NAME",
    )
    generation_config: str = option(
        "auto",
        "auto: temperature, top_p, top_k, min_p and repetition_penalty that the model publishes "
        "(generation_config.json) are a request's defaults; none (or vllm): they are not",
        group="model",
        choices=GENERATION_CONFIGS,
        metavar="WHICH",
    )

    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 for every interface", group="HTTP"
    )
    port: int = option(
        8000,
        "port to listen on; 0 takes any free one",
        group="HTTP",
        bounds=(0, 65535),
        metavar="PORT",
    )
    uds: str | None = option(
        None,
        "Unix socket to listen on, in place of --host and --port",
        group="HTTP",
        metavar="PATH",
    )
    ssl_keyfile: str | None = option(
        None, "private key (PEM); with --ssl-certfile: HTTPS", group="HTTP", metavar="FILE"
    )
    ssl_certfile: str | None = option(
        None, "certificate, and those that lead to it (PEM)", group="HTTP", metavar="FILE"
    )
    root_path: str = option(
        "",
        "prefix of all paths that a proxy in front of the server leaves there",
        group="HTTP",
        metavar="PATH",
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "origins of pages whose scripts may use the server (CORS), such as https://example.org; "
        "* for all; none by default",
        group="HTTP",
        metavar="ORIGIN",
    )
    api_key: tuple[str, ...] = option(
        (),
        "keys of which clients must send one (better in the environment or a file)",
        group="HTTP",
        metavar="KEY",
        empty_is_none=False,
        secret=True,
    )
    api_key_file: str | None = option(
        None, "file with further keys, one per line", group="HTTP", metavar="FILE"
    )
    cache_per_key: bool = option(
        False,
        "share computed prefixes only among requests with the same API key",
        group="HTTP",
    )
    max_connections: int = option(
        0,
        "most connections of clients; one more ends one that has no request, or is answered with "
        "503; 0: as many as the limit of open files allows",
        group="HTTP",
        bounds=(0, 2**20),
    )
    strict_requests: bool = option(
        False,
        "refuse requests with fields that neither OpenAI's nor vLLM's API has, in place of "
        "ignoring them",
        group="HTTP",
    )
    max_body_bytes: int = option(
        8 * 2**20,
        "largest body of one request",
        group="HTTP",
        bounds=(1024, 2**40),
        metavar="BYTES",
    )
    max_all_bodies_bytes: int = option(
        512 * 2**20,
        "memory for all request bodies that are arriving or wait to be tokenized",
        group="HTTP",
        bounds=(1024, 2**44),
        metavar="BYTES",
    )
    answer_memory_bytes: int = option(
        64 * 2**20,
        "memory for the token ids of answers, which are used again where a conversation has the "
        "answer's text; 0: all of its text is tokenized anew",
        group="HTTP",
        bounds=(0, 2**40),
        metavar="BYTES",
    )
    response_store_bytes: int = option(
        64 * 2**20,
        "memory for the responses of /v1/responses that later requests may refer to; 0: none are "
        "kept",
        group="HTTP",
        bounds=(0, 2**40),
        metavar="BYTES",
    )
    body_timeout: float = option(
        30.0,
        "time for a client to send a request's head, and again for its body",
        group="HTTP",
        bounds=(0.1, DAY),
    )

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

    kv_events_addr: str | None = option(
        None,
        "address (tcp:// or ipc://) at which other routers hear what enters and leaves the prefix "
        "cache, prompts' token ids among it, in vLLM's form",
        group="replicas",
        metavar="ADDRESS",
    )
    kv_events_replay_addr: str | None = option(
        None,
        "address at which they can ask for what they missed",
        group="replicas",
        metavar="ADDRESS",
    )
    kv_events_topic: str = option(
        "", "topic of these messages, such as kv@POD@MODEL", group="replicas", metavar="TOPIC"
    )

    max_waiting_tokens: int = option(
        2**24,
        "tokens that the prompts of waiting requests may have together; where more come, a request "
        "is refused with 429, unless none waits, but for a quarter more of API keys that have less "
        "than their part",
        group="engine",
    )
    num_tokenizer: int = option(
        0,
        "tokenizer processes; 0: the server tokenizes itself",
        group="processes",
        bounds=(0, 256),
    )
    startup_timeout: float = option(
        600.0, "time within which the engine must be ready", group="processes", bounds=(1, DAY)
    )
    drain_timeout: float = option(
        30.0,
        "time that live streams have to end after SIGTERM",
        group="processes",
        bounds=(0, DAY),
    )
    step_timeout: float = option(
        STEP_TIMEOUT,
        "time without progress after which a rank that has work is lost, and the engine is "
        "started again; a collective has the same time",
        group="processes",
        bounds=(1, DAY),
    )
    metrics_alias_prefix: str = option(
        "vllm", "second prefix of metrics; empty: none", group="processes", metavar="PREFIX"
    )
    log_level: str = option(
        "info",
        "least level of log lines: "
        + ", ".join(LOG_LEVELS)
        + "; debug has a line per request (id, prompt tokens, queued, first token, end)",
        group="processes",
        choices=LOG_LEVELS,
        metavar="LEVEL",
    )
    log_format: str = option(
        "text",
        "log lines of all processes: text, or json: one object per line",
        group="processes",
        choices=LOG_FORMATS,
        metavar="FORMAT",
    )
    shell: bool = False

    @property
    def tp(self) -> int:
        """Ranks that the model is split over: the size in `tp_info`."""
        return self.tp_info.size

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host:
            raise OptionError("host", "must not be empty; 0.0.0.0 listens on every interface")
        self._check_http()
        self._check_ranks()
        self._check_replicas()
        self._check_hosts()
        self._check_kv_events()

    def _check_http(self) -> None:
        for fault in map(key_fault, self.api_key):
            if fault:
                raise OptionError("api_key", fault)
        if self.cache_per_key and not self.api_key and self.api_key_file is None:
            raise OptionError("cache_per_key", "needs --api-key or --api-key-file, too")
        for given, missing in (
            ("ssl_keyfile", "ssl_certfile"),
            ("ssl_certfile", "ssl_keyfile"),
        ):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise OptionError(given, f"needs --{missing.replace('_', '-')}, too")
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise OptionError(
                "root_path",
                f"must be a path such as /model without / at its end, got {self.root_path!r}",
            )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    "allowed_origins",
                    f"must be * or origins such as https://example.org, got {origin!r}",
                )

    def _check_kv_events(self) -> None:
        for name in ("kv_events_addr", "kv_events_replay_addr"):
            address = getattr(self, name)
            if address is not None and not _ZMQ_ADDRESS.fullmatch(address):
                raise OptionError(name, f"must be tcp://HOST:PORT or ipc://PATH, got {address!r}")
        if self.kv_events_replay_addr is not None and self.kv_events_addr is None:
            raise OptionError("kv_events_replay_addr", "needs --kv-events-addr, too")

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
    def needs_weights(self) -> bool:
        """Whether a model's weights have to be on this host."""
        return self.load_format != "dummy" and self.cluster is None

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


def parse_address(text: str, option: str = "dist_init_addr") -> tuple[str, int]:
    """Host and port of "host:port", an IPv6 host in brackets. OptionError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65533:
        raise OptionError(option, f"must be host:port with a port up to 65533, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
