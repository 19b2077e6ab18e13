"""Messages between the server and an engine rank: msgpack on the wire, types and bounds checked by
the decoders, which raise msgspec.DecodeError.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from minisgl.config import STEP_TIMEOUT, EngineSettings
from minisgl.sampling_params import (
    MAX_BAD_WORDS,
    MAX_DIMENSIONS,
    MAX_PRIORITY,
    MAX_TOKEN_ID,
    MIN_PRIORITY,
    SamplingParams,
)

ALIVE_SECONDS = 1.0  # between two signs of life
MAX_TEXT = 64 * 2**10  # characters of an error sentence
MAX_TOKENS_OF_MESSAGE = 2**24
MAX_EMBEDDING_BYTES = 4 * MAX_DIMENSIONS
SALT_BYTES = 16
MAX_USER = 2**63 - 1

RequestId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_TOKENS_OF_MESSAGE)]
NonNegative = Annotated[float, Meta(ge=0.0, le=3.0e38)]
Word = Annotated[list[TokenId], Meta(min_length=1, max_length=4096)]
Sentence = Annotated[str, Meta(max_length=MAX_TEXT)]

# The reason a request ended. "" is not yet.
Finish = Literal["", "stop", "length", "abort", "error"]
# Why it ended with "error". The first four are the engine's, the others are the server's: it goes
# away, or the model does for which the request came.
ErrorCode = Literal[
    "", "invalid_request", "too_long", "queue_full", "engine_failure", "shutting_down", "replaced"
]

# (token id, log probability)
Alternative = tuple[TokenId, float]
# (log probability of the chosen token, most likely alternatives first); one per token
TokenLogprob = tuple[float, list[Alternative]]
# (token id, log probability or None for the first token, alternatives); one per prompt token
PromptLogprob = tuple[TokenId, float | None, list[Alternative]]
# Seconds (waiting, from first step to first token, from there to the end)
Timings = tuple[float, float, float]


# --- server to rank


class Standing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whose turn a request waits for: see "Order" in cpp/README.md."""

    priority: Annotated[int, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)] = 0  # lower goes first
    share: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0  # shares have equal parts of the tokens
    user: Annotated[int, Meta(ge=0, le=MAX_USER)] = 0  # users have equal parts of their share's


NO_STANDING = Standing()  # where nobody says anything


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit", omit_defaults=True):
    """A request. `params` checks itself when it is decoded."""

    id: RequestId
    prompt: TokenIds
    params: SamplingParams  # with a seed
    # How many trailing prompt tokens an engine that died generated; max_tokens and min_tokens count
    # them.
    num_resumed: Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)] = 0
    # Tokens that end the request besides those that params and the model's files name.
    end_token_ids: Annotated[list[TokenId], Meta(max_length=4096)] = []
    # What params.bad_words is in the model's tokens.
    bad_words: Annotated[list[Word], Meta(max_length=2 * MAX_BAD_WORDS)] = []
    # Only requests with the same one share what was computed; None is one, too.
    prefix_salt: Annotated[bytes, Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)] | None = None
    standing: Standing = NO_STANDING

    def engine_fields(self) -> dict[str, Any]:
        """The keys of the native engine's submit(), flat."""
        return {
            **self.params.engine_fields(),
            "id": self.id,
            "prompt": self.prompt,
            "num_resumed": self.num_resumed,
            "bad_words": self.bad_words,
            "stop_token_ids": [*self.params.stop_token_ids, *self.end_token_ids],
            "priority": self.standing.priority,
            "share": self.standing.share,
            "user": self.standing.user,
            **({} if self.prefix_salt is None else {"prefix_salt": self.prefix_salt}),
        }


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Requests to end now. Unknown and finished ids are ignored."""

    ids: Annotated[list[RequestId], Meta(max_length=2**20)]


class LoadAdapter(msgspec.Struct, frozen=True, tag="load_adapter"):
    """A LoRA adapter that requests may name by `id` once the rank has said AdapterLoaded."""

    id: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    path: Annotated[str, Meta(min_length=1, max_length=4096)]


class UnloadAdapter(msgspec.Struct, frozen=True, tag="unload_adapter"):
    """No request names it any more."""

    id: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process: status 0."""


# --- rank to server


class Output(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a request got in a step, or in several merged ones. The layout is that of the native
    engine's take_outputs().
    """

    id: RequestId
    token_ids: TokenIds
    finish: Finish = ""
    error_code: ErrorCode = ""
    error: Sentence = ""
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    timings: Timings | None = None
    # Prompt tokens that were found in the prefix cache, once, when prefill ends; else 0.
    num_cached: Count = 0
    # With the finish, where params.pooling asks for one: 32-bit floating-point numbers.
    embedding: Annotated[bytes, Meta(max_length=MAX_EMBEDDING_BYTES)] = b""
    # With the finish, where any were tried: drafts, and those of them that held.
    drafts: tuple[Count, Count] = (0, 0)

    def merge(self, later: Output) -> None:
        """Appends a later output of the same request."""
        self.token_ids += later.token_ids
        self.num_cached += later.num_cached
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + later.prompt_logprobs
        if later.finish:
            self.finish = later.finish
            self.error_code = later.error_code
            self.error = later.error
            self.timings = later.timings
            self.embedding = later.embedding
            self.drafts = later.drafts


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The native engine's counters at the end of a step."""

    num_running: Count = 0
    num_waiting: Count = 0
    # (priority, requests that wait with it), in order of priorities
    waiting_by_priority: Annotated[list[tuple[int, Count]], Meta(max_length=2**10)] = []
    pages_total: Count = 0
    pages_free: Count = 0  # what the prefix cache would give up among them
    pages_cached: Count = 0
    # Tokens looked for in the prefix cache, found there, and given up by it.
    prefix_queries: Count = 0
    prefix_hits: Count = 0
    prefix_evictions: Count = 0
    # The same of the prefix cache's tier in the host's memory: pages that have memory, and cached
    # ones; tokens that weren't on the device; and bytes copied there and back by rank 0.
    host_pages_ready: Count = 0
    host_pages_cached: Count = 0
    host_queries: Count = 0
    host_hits: Count = 0
    host_evictions: Count = 0
    host_bytes_out: Count = 0
    host_bytes_in: Count = 0
    num_preemptions: Count = 0
    # Parts of steps that tried drafts, the drafts, those that held, by place behind the last known
    # token, and the seconds that went into finding them.
    num_drafts: Count = 0
    draft_tokens: Count = 0
    accepted_tokens: Count = 0
    accepted_at: Annotated[list[tuple[int, Count]], Meta(max_length=64)] = []
    draft_seconds: NonNegative = 0.0
    num_steps: Count = 0
    prompt_tokens: Count = 0
    generated_tokens: Count = 0
    step_seconds: NonNegative = 0.0  # in which steps were under way

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV cache's pages that are in use, 0 to 1."""
        return (self.pages_total - self.pages_free) / (self.pages_total or 1)


class BlockEvent(msgspec.Struct, array_like=True, frozen=True):
    """Blocks that entered or left the prefix cache, or all that left it. The layout is that of the
    native engine's take_block_events().
    """

    kind: Literal["stored", "removed", "cleared"]
    medium: Annotated[str, Meta(max_length=16)] = ""
    hashes: Annotated[list[int], Meta(max_length=2**20)] = []
    parent: int | None = None  # the hash of the block that the first one follows
    token_ids: TokenIds = []
    salt: Annotated[bytes, Meta(max_length=SALT_BYTES)] = b""

    def __post_init__(self) -> None:
        if self.kind == "stored" and (not self.hashes or len(self.token_ids) % len(self.hashes)):
            raise ValueError(f"{len(self.hashes)} blocks can't have {len(self.token_ids)} tokens")


class StepOutputs(msgspec.Struct, frozen=True, tag="step", omit_defaults=True):
    """Everything the engine made since the last message; one message a wake of the rank's loop."""

    outputs: Annotated[list[Output], Meta(max_length=2**20)]
    stats: EngineStats
    # What the prefix cache has since, with EngineOptions.report_blocks.
    block_events: Annotated[list[BlockEvent], Meta(max_length=2**20)] = []


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded and chosen at start: the native engine's `info`."""

    vocab_size: Annotated[int, Meta(ge=1, le=MAX_TOKEN_ID)]
    max_model_len: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    eos_token_ids: Annotated[list[TokenId], Meta(max_length=4096)] = []
    family: Sentence = ""
    weight_dtype: Sentence = ""
    weight_bytes: Count = 0
    num_layers: Count = 0
    hidden_size: Count = 0
    max_position: Count = 0
    kv_dtype: Sentence = ""
    num_pages: Count = 0
    page_size: Count = 0
    kv_cache_tokens: Count = 0
    kv_cache_bytes: Count = 0
    # Bytes on a GPU; 0 where the memory is the host's.
    workspace_bytes: Count = 0
    graph_bytes: Count = 0
    free_bytes: Count = 0
    stacked_rows: Count = 0  # of decode steps whose layers are one operation; 0: of none
    num_threads: Count = 0
    device: Sentence = ""
    isa: Sentence = ""
    max_running: Count = 0
    max_penalized: Count = 0
    max_batch_tokens: Count = 0
    prefix_cache: bool = False
    # The prefix cache's tier in the host's memory; 0: there is none.
    host_tokens: Count = 0
    host_bytes: Count = 0
    host_bytes_per_second: NonNegative = 0.0  # from there to the device, as measured at start
    comm: Sentence = ""  # how the ranks sum; "" for a single rank
    cores: Sentence = ""  # those that the rank is pinned to; "" for none in particular


class PhaseReport(msgspec.Struct, frozen=True, kw_only=True, tag="phase"):
    """Progress of the start. `finished` with the phase's seconds, once; before that any number of
    reports.
    """

    phase: Sentence
    done: Count = 0
    total: Count = 0
    seconds: NonNegative = 0.0
    finished: bool = False


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The start is over: requests are answered from now on. `process` is the process's name."""

    info: EngineInfo
    process: Sentence = ""


class AdapterLoaded(msgspec.Struct, frozen=True, tag="adapter"):
    """A LoadAdapter was done. `error`: why it couldn't be; empty: it was."""

    id: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    error: Sentence = ""


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The process is about to end with status 1, and why."""

    message: Sentence
    blamed_rank: Annotated[int, Meta(ge=-1, le=1023)] = -1  # another rank that caused it; -1: none


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Said every ALIVE_SECONDS from the first message on: a rank that is silent is stuck or
    stopped, and so is one that works without getting further.
    """

    done: Count = 0  # grows with what the native engine does
    working: bool = False  # whether the engine has something to do that doesn't depend on others


FromRank = StepOutputs | PhaseReport | Ready | AdapterLoaded | Failed | Alive

# --- the rank's configuration, server to rank


@dataclass(frozen=True, kw_only=True)
class EngineOptions(EngineSettings):
    """The native engine's arguments, the same for all ranks. They check themselves when they are
    decoded.
    """

    model_path: str
    cache_dir: str = (
        ""  # for what a GPU measures of itself, and a CPU's packed weights; "": nowhere
    )
    report_blocks: bool = False  # say what enters and leaves the prefix cache


class NamedModel(msgspec.Struct, frozen=True):
    """A model as an operator names it: each host looks for its own copy."""

    model: Annotated[str, Meta(min_length=1, max_length=4096)] | None  # as --model; None: default
    revision: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None  # as --revision


class PlanKeys(msgspec.Struct, frozen=True):
    """What a rank of another host and rank 0 show each other, new at every start."""

    rank: Count
    follower: Annotated[bytes, Meta(min_length=32, max_length=32)]
    primary: Annotated[bytes, Meta(min_length=32, max_length=32)]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Which rank a process is, and how it finds the others."""

    rank: Count = 0
    size: Annotated[int, Meta(ge=1, le=1024)] = 1
    local_rank: Count = 0  # among those of its host
    local_size: Annotated[int, Meta(ge=1, le=1024)] = 1
    cores: list[int] = []  # those that this rank alone has; empty: there are not enough
    sharers: Annotated[int, Meta(ge=1, le=2**20)] = 1  # ranks that share this host's processors
    comm: str = "auto"
    step_timeout: Annotated[float, Meta(gt=0, le=86400)] = STEP_TIMEOUT  # limit of a collective, s
    name: str = ""  # the group's, unlike any other's on its hosts
    ring_fd: int = -1  # plans among ranks of one host, inherited; -1: none
    host: str = ""  # rank 0's address, where ranks are on several hosts
    plan_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    sum_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    secret: str = ""  # known to the ranks alone, new at every start
    # Rank 0: of all ranks of other hosts. A rank of another host: its own.
    remotes: list[PlanKeys] = []

    def at(self, **changes: Any) -> Place:
        """The same place with other values of some fields."""
        return msgspec.structs.replace(self, **changes)


class Start(msgspec.Struct, frozen=True, tag="start"):
    """A rank's first message."""

    options: EngineOptions
    place: Place


ToRank = Submit | Abort | LoadAdapter | UnloadAdapter | Shutdown | Start

to_rank_decoder: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
from_rank_decoder: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
