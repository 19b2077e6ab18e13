"""Server settings: the only place that reads command-line flags and MINISGL_* environment
variables.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

KV_DTYPES = ("auto", "f32", "f16", "bf16")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")
CommKind = Literal["auto", "nccl", "one-shot", "torch", "shm"]
COMM_KINDS: tuple[str, ...] = get_args(CommKind)
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
ENV_PREFIX = "MINISGL_"
MAX_WAITING = 2**20
STEP_TIMEOUT = 30.0  # seconds
MIN_SECRET_LENGTH = 16  # the least for --dist-secret: a proof of knowing it crosses the network

_SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def option(
    default: Any,
    help: str,
    *,
    low: float = 0,
    high: float = 2**31 - 1,
    choices: Sequence[str] = (),
    metavar: str = "N",
    flag: str = "",
) -> Any:
    """A field that describes itself: its default, its flag and help, its bounds or choices. `flag`
    where it isn't the field's name.
    """
    described: dict[str, Any] = {"help": help, "metavar": metavar, "flag": flag}
    if choices:
        described["choices"] = choices
    elif not isinstance(default, bool):
        described["bounds"] = (low, high)
    return field(default=default, metadata=described)


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What may be set of the engine, described once: the flags of `minisgl-serve`, the arguments of
    LLM and the messages to the ranks are these fields. 0 and "auto" are chosen at start.

    Raises ValueError with the field, its range and the value when something is out of bounds.
    """

    num_threads: int = option(
        0,
        "engine threads; 0: one for each core that this process may use",
        high=1024,
        flag="threads",
    )
    kv_dtype: str = option(
        "auto", "KV cache type: " + ", ".join(KV_DTYPES), choices=KV_DTYPES, metavar="TYPE"
    )
    kv_cache_tokens: int = option(0, "tokens that the KV cache holds; 0: as many as memory allows")
    max_model_len: int = option(
        0, "most tokens of a request, prompt and output; 0: the model's limit"
    )
    page_size: int = option(16, "tokens per KV page", low=1, high=1024)
    max_running: int = option(256, "most sequences in one step", low=1, high=65536)
    max_batch_tokens: int = option(
        0, "most tokens in one step; 0: 512 on a CPU, 8192 on a GPU", high=65536
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
        low=0.01,
        high=1.0,
        metavar="SHARE",
    )
    num_pages: int = option(0, "pages of the KV cache, in place of --kv-cache-tokens")
    disable_cuda_graph: bool = option(False, "don't record decode steps as CUDA graphs")
    disable_overlap: bool = option(
        False, "plan each step after the end of the one before (for debugging)"
    )
    load_format: str = option(
        "auto",
        "auto, or dummy: random weights (for measuring)",
        choices=LOAD_FORMATS,
        metavar="FORMAT",
    )
    max_waiting: int = option(
        1024, "requests that may wait; one more is refused with 429", high=MAX_WAITING
    )

    def __post_init__(self) -> None:
        for described in fields(EngineSettings):
            metadata = described.metadata
            if "bounds" in metadata:
                _check_bounds(described.name, getattr(self, described.name), *metadata["bounds"])
            elif "choices" in metadata:
                _check_choice(described.name, getattr(self, described.name), metadata["choices"])
        if self.page_size & (self.page_size - 1):
            raise ValueError(f"page_size must be a power of two, got {self.page_size}")


def _check_bounds(name: str, value: object, low: float, high: float) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not (low <= value <= high):  # also refuses NaN
        limit = f"between {low} and {high}" if high != math.inf else f"at least {low}"
        raise ValueError(f"{name} must be {limit}, got {value}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class ServerArgs(EngineSettings):
    """Everything that can be set about a server, the engine's settings among it. 0 means "chosen at
    start", and the start says what was chosen.

    Raises ValueError with the field, its range and the value when something is out of bounds.
    """

    model: str | None = None  # Hugging Face id, folder or .gguf file; None: the default model
    revision: str | None = None  # branch, tag or commit of a Hugging Face id
    served_model_name: str | None = None  # what /v1/models says; None: derived from the model
    chat_template: str | None = None  # path of a Jinja file that replaces the model's template

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free port, printed at start
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 8 * 2**20  # the largest body of one request
    max_all_bodies_bytes: int = 512 * 2**20  # memory for all bodies that are arriving
    body_timeout: float = 30.0  # seconds for a client to send a head, and the same for a whole body

    tp: int = 1  # tensor-parallel ranks, over all hosts
    comm: str = "auto"  # how ranks add up their parts; auto: by the devices
    nnodes: int = 1  # hosts
    node_rank: int = 0  # this host's number; the server is on host 0
    dist_init_addr: str | None = None  # host:port of node 0, for several hosts
    dist_secret: str | None = field(default=None, repr=False)  # the secret that all hosts share

    num_tokenizer: int = 0  # tokenizer processes; 0: in the server's own process
    startup_timeout: float = 600.0  # seconds until the engine must be ready
    # Seconds that a rank may work without any progress, and that a collective may take: then it is
    # lost, and the engine is started again.
    step_timeout: float = STEP_TIMEOUT
    drain_timeout: float = 30.0  # seconds that live streams have to finish after SIGTERM
    metrics_alias_prefix: str = "vllm"  # metrics are also shown under this prefix; "" for none
    log_level: str = "info"  # debug: one line per request, too
    log_format: str = "text"  # json: one object per line, of all processes
    shell: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, (low, high) in _BOUNDS.items():
            _check_bounds(name, getattr(self, name), low, high)
        for name, choices in (
            ("comm", COMM_KINDS),
            ("log_level", LOG_LEVELS),
            ("log_format", LOG_FORMATS),
        ):
            _check_choice(name, getattr(self, name), choices)
        if not self.host:
            raise ValueError("host must not be empty; use 0.0.0.0 to listen on every interface")
        if self.api_key is not None and not self.api_key:
            raise ValueError("api_key must not be empty")
        self._check_hosts()

    def _check_hosts(self) -> None:
        if self.tp % self.nnodes:
            raise ValueError(f"tp must be a multiple of nnodes ({self.nnodes}), got {self.tp}")
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"node_rank must be below nnodes ({self.nnodes}), got {self.node_rank}"
            )
        if self.nnodes == 1:
            return
        if self.dist_init_addr is None:
            raise ValueError("dist_init_addr must be given where nnodes is more than 1")
        parse_address(self.dist_init_addr)
        if not self.dist_secret:
            raise ValueError(
                "dist_secret must be given where nnodes is more than 1 "
                "(MINISGL_DIST_SECRET keeps it out of the list of processes)"
            )
        if len(self.dist_secret) < MIN_SECRET_LENGTH:
            raise ValueError(
                f"dist_secret must have at least {MIN_SECRET_LENGTH} characters, got "
                f"{len(self.dist_secret)}; `openssl rand -hex 16` makes one"
            )
        if self.comm == "shm":
            raise ValueError(f"comm shm joins the ranks of one host, and nnodes is {self.nnodes}")


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "port": (0, 65535),
    "max_body_bytes": (1024, 2**40),
    "max_all_bodies_bytes": (1024, 2**44),
    "body_timeout": (0.1, 86400),
    "tp": (1, 1024),
    "nnodes": (1, 1024),
    "node_rank": (0, 1023),
    "num_tokenizer": (0, 256),
    "startup_timeout": (1, 86400),
    "step_timeout": (1, 86400),
    "drain_timeout": (0, 86400),
}


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port", an IPv6 host in brackets. ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65533:
        raise ValueError(f"dist_init_addr must be host:port with a port up to 65533, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_count(text: str) -> int:
    """A whole number with an optional suffix K, M or G (powers of 1024): "64K" is 65536."""
    number, suffix = text.strip(), ""
    if number and number[-1].upper() in _SUFFIXES:
        number, suffix = number[:-1], number[-1].upper()
    if not (number.isascii() and number.isdigit()) or len(number) > 18:
        raise argparse.ArgumentTypeError(
            f"expected a whole number such as 4096 or 64K, got {text!r}"
        )
    return int(number) * _SUFFIXES[suffix]


def parse_optional(text: str) -> str | None:
    """A text, or None where it is empty: the option is as if it weren't given."""
    return text or None


def parse_choice(text: str) -> str:
    """One of several words; ServerArgs says which."""
    return text


def parse_switch(text: str) -> bool:
    """A switch in the environment: 1 or true, 0 or false."""
    answer = {"1": True, "true": True, "0": False, "false": False}.get(text.strip().lower())
    if answer is None:
        raise argparse.ArgumentTypeError(f"expected 1 or 0, got {text!r}")
    return answer


def parse_number(text: str) -> float:
    """A finite number, such as a time in seconds or a share."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


@dataclass(frozen=True)
class _Flag:
    """One flag of the command line. Its environment variable is MINISGL_ and the flag's name in
    capitals.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = parse_optional
    metavar: str = "TEXT"
    dest: str = ""  # field of ServerArgs, where it isn't the flag's name
    is_switch: bool = False  # takes no value on the command line, 1 or 0 in the environment

    @property
    def field(self) -> str:
        return self.dest or self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.replace("-", "_").upper()

    def is_set(self, environment: Mapping[str, str]) -> bool:
        """Whether the environment has a value for it. An empty one is a value of a text; there is
        no empty number, switch or choice, and an empty variable leaves them unset.
        """
        if self.parse in (str, parse_optional):
            return self.variable in environment
        return bool(environment.get(self.variable))


def _switch(name: str, help: str) -> _Flag:
    return _Flag(name, help, parse_switch, is_switch=True)


def _engine_flag(described: Field[Any]) -> _Flag:
    metadata, default = described.metadata, described.default
    name = metadata["flag"] or described.name.replace("_", "-")
    if isinstance(default, bool):
        return _switch(name, metadata["help"])
    parsers = {int: parse_count, float: parse_number, str: parse_choice}
    parse = parsers[type(default)]
    return _Flag(name, metadata["help"], parse, metadata["metavar"], described.name)


_GROUPS: Sequence[tuple[str, Sequence[_Flag]]] = (
    (
        "model",
        (
            _Flag("model", "Hugging Face id, folder (config.json + safetensors) or .gguf file"),
            _Flag("revision", "branch, tag or commit of the Hugging Face id"),
            _Flag("served-model-name", "name of the model in /v1/models and in answers"),
            _Flag(
                "chat-template",
                "Jinja file that replaces the model's chat template",
                metavar="FILE",
            ),
        ),
    ),
    (
        "HTTP",
        (
            _Flag("host", "address to listen on; 0.0.0.0 for every interface", str, "HOST"),
            _Flag("port", "port to listen on; 0 takes any free one", parse_count, "PORT"),
            _Flag(
                "api-key",
                "key that clients must send (better set in the environment)",
                str,
                "KEY",
            ),
            _Flag("max-body-bytes", "largest body of one request", parse_count, "BYTES"),
            _Flag(
                "max-all-bodies-bytes",
                "memory for all request bodies that are arriving at once",
                parse_count,
                "BYTES",
            ),
            _Flag(
                "body-timeout",
                "time for a client to send a request's head, and again for its body",
                parse_number,
                "SECONDS",
            ),
        ),
    ),
    ("engine", [_engine_flag(described) for described in fields(EngineSettings)]),
    (
        "tensor parallelism",
        (
            _Flag(
                "tp", "ranks that the model is split over, on all hosts together", parse_count, "N"
            ),
            _Flag(
                "comm",
                "how ranks add up their parts: " + ", ".join(COMM_KINDS),
                parse_choice,
                "HOW",
            ),
            _Flag("nnodes", "hosts that the ranks are on", parse_count, "N"),
            _Flag("node-rank", "number of this host; 0 is the one that serves", parse_count, "N"),
            _Flag(
                "dist-init-addr",
                "address of host 0, which also listens at the next two ports",
                metavar="HOST:PORT",
            ),
            _Flag(
                "dist-secret",
                "secret that all hosts share (better set in the environment)",
                str,
                "SECRET",
            ),
        ),
    ),
    (
        "processes",
        (
            _Flag(
                "num-tokenizer",
                "tokenizer processes; 0: the server tokenizes itself",
                parse_count,
                "N",
            ),
            _Flag(
                "startup-timeout",
                "time within which the engine must be ready",
                parse_number,
                "SECONDS",
            ),
            _Flag(
                "drain-timeout",
                "time that live streams have to end after SIGTERM",
                parse_number,
                "SECONDS",
            ),
            _Flag(
                "step-timeout",
                "time without progress after which a rank that has work is lost",
                parse_number,
                "SECONDS",
            ),
            _Flag(
                "metrics-alias-prefix",
                "second prefix of metrics; empty: none",
                str,
                "PREFIX",
            ),
            _Flag(
                "log-level",
                "least level of log lines: "
                + ", ".join(LOG_LEVELS)
                + "; debug has a line per request (id, prompt tokens, queued, first token, end)",
                parse_choice,
                "LEVEL",
            ),
            _Flag(
                "log-format",
                "log lines of all processes: text, or json: one object per line",
                parse_choice,
                "FORMAT",
            ),
        ),
    ),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser behind minisgl-serve. Flags that aren't given are absent from its result."""
    defaults = {f.name: f.default for f in fields(ServerArgs)}
    parser = argparse.ArgumentParser(
        prog="minisgl-serve",
        description="Serve a language model over an OpenAI-compatible HTTP API.",
        epilog=f"Each flag can be set in the environment: --kv-dtype is {ENV_PREFIX}KV_DTYPE; one "
        "without a value is 1 or 0 there. An empty variable is the empty text where the option "
        f"is a text ({ENV_PREFIX}METRICS_ALIAS_PREFIX= switches the second prefix off), and leaves "
        "a number, a switch or a choice unset. Counts accept K, M and G (powers of 1024).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "positional_model",
        nargs="?",
        type=parse_optional,
        metavar="MODEL",
        help="the same as --model",
    )
    for title, flags in _GROUPS:
        group = parser.add_argument_group(title)
        for flag in flags:
            if flag.is_switch:
                group.add_argument(
                    f"--{flag.name}", dest=flag.field, action="store_true", help=flag.help
                )
                continue
            default = defaults[flag.field]
            shown = "" if default in (None, "") else f" (default {default})"
            group.add_argument(
                f"--{flag.name}",
                dest=flag.field,
                type=flag.parse,
                metavar=flag.metavar,
                help=flag.help + shown,
            )
    parser.add_argument("--shell", action="store_true", help="talk to the model in this terminal")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


def parse_args(
    argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> ServerArgs:
    """Reads flags, then the environment for what no flag set, then the defaults.

    Ends the process like every argparse program does: status 2 and one sentence for a bad value, 0
    after --help and --version.
    """
    environment = os.environ if environment is None else environment
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    if given.pop("version", False):
        from minisgl.version import __version__

        print(f"minisgl {__version__}")
        parser.exit(0)
    positional = given.pop("positional_model", None)
    if positional is not None:
        if "model" in given:
            parser.error(f"the model is given twice: {positional!r} and --model {given['model']!r}")
        given["model"] = positional
    for _, flags in _GROUPS:
        for flag in flags:
            if flag.field not in given and flag.is_set(environment):
                try:
                    given[flag.field] = flag.parse(environment[flag.variable])
                except argparse.ArgumentTypeError as error:
                    parser.error(f"environment variable {flag.variable}: {error}")
    try:
        return ServerArgs(**given)
    except ValueError as error:
        parser.error(str(error))


def default_cache_dir(environment: Mapping[str, str] | None = None) -> Path:
    """Where the default model, the shell's history and measurements of GPUs are kept: minisgl in
    XDG_CACHE_HOME, where that is set to an absolute path, else in ~/.cache.
    """
    base = (os.environ if environment is None else environment).get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "minisgl"


def child_log_variables(level: str, log_format: str) -> dict[str, str]:
    """The environment that tells child processes how to log."""
    return {ENV_PREFIX + "LOG_LEVEL": level, ENV_PREFIX + "LOG_FORMAT": log_format}


def child_log_settings(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Level and format of a child process's log lines: its parent's, who is a server; under an LLM
    warnings, as text.
    """
    environment = os.environ if environment is None else environment
    level, log_format = (environment.get(name, "") for name in child_log_variables("", ""))
    return (
        level if level in LOG_LEVELS else "warning",
        log_format if log_format in LOG_FORMATS else "text",
    )


def pynccl_buffer_limit(environment: Mapping[str, str] | None = None) -> int | None:
    """Largest buffer of the NCCL communicator in bytes, from MINISGL_PYNCCL_MAX_BUFFER_SIZE
    ("64M"); None where it isn't set. Raises ValueError for anything but a whole number with K, M, G
    or none.
    """
    variable = ENV_PREFIX + "PYNCCL_MAX_BUFFER_SIZE"
    text = (os.environ if environment is None else environment).get(variable, "")
    if not text:
        return None
    try:
        return parse_count(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"environment variable {variable}: {error}") from None
