"""What may be set, all of it: each option once, with its default, its bounds and its help.
flags.py reads it from the command line and the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from minisgl.config.engine import EngineSettings
from minisgl.config.http import HttpSettings
from minisgl.config.model import ModelSettings
from minisgl.config.option import DAY, OptionError, option
from minisgl.config.placement import PlacementSettings

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
STEP_TIMEOUT = 30.0  # seconds
_ZMQ_ADDRESS = re.compile(r"tcp://[^/\s]+:\d{1,5}|ipc://\S+")


@dataclass(frozen=True)
class ServerArgs(PlacementSettings, HttpSettings, ModelSettings, EngineSettings):
    """Everything that can be set about a server, the engine's settings among it. 0 means "chosen at
    start", and the start says what was chosen. The fields are in the order of the command line's
    help: those of the last base are the first.

    Raises OptionError with the field, its range and the value when something is out of bounds.
    """

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

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_http()
        self._check_ranks()
        self._check_replicas()
        self._check_hosts()
        self._check_kv_events()
        self._check_lora()

    def _check_kv_events(self) -> None:
        for name in ("kv_events_addr", "kv_events_replay_addr"):
            address = getattr(self, name)
            if address is not None and not _ZMQ_ADDRESS.fullmatch(address):
                raise OptionError(name, f"must be tcp://HOST:PORT or ipc://PATH, got {address!r}")
        if self.kv_events_replay_addr is not None and self.kv_events_addr is None:
            raise OptionError("kv_events_replay_addr", "needs --kv-events-addr, too")

    def _check_lora(self) -> None:
        names = [name for name, _ in self.adapters]
        for text, (name, path) in zip(self.lora, self.adapters, strict=True):
            if not name or not path:
                raise OptionError("lora", f"must be NAME=FOLDER, got {text!r}")
            if names.count(name) > 1 or name in self.served_model_name:
                raise OptionError("lora", f"has the name {name!r} twice")

    @property
    def adapters(self) -> list[tuple[str, str]]:
        """Names and folders of the adapters that are there from the start on."""
        return [(name, path) for name, _, path in (text.partition("=") for text in self.lora)]

    @property
    def needs_weights(self) -> bool:
        """Whether a model's weights have to be on this host."""
        return self.load_format != "dummy" and self.cluster is None
