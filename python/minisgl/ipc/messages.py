"""Messages between the server and an engine rank: msgpack on the wire, types and bounds checked by
the decoders.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MAX_TOKEN_ID = 2**31 - 1
MAX_TEXT = 64 * 2**10  # characters of an error sentence
MAX_TOKENS_OF_MESSAGE = 2**24

RequestId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
TokenId = Annotated[int, Meta(ge=0, le=MAX_TOKEN_ID)]
Count = Annotated[int, Meta(ge=0, le=2**62)]
TokenIds = Annotated[list[TokenId], Meta(max_length=MAX_TOKENS_OF_MESSAGE)]
Finite = Annotated[float, Meta(ge=-3.0e38, le=3.0e38)]
NonNegative = Annotated[float, Meta(ge=0.0, le=3.0e38)]
Sentence = Annotated[str, Meta(max_length=MAX_TEXT)]
Alternatives = Annotated[int, Meta(ge=-1, le=1024)]

# The reason a request ended. "" is not yet.
Finish = Literal["", "stop", "length", "abort", "error"]
# Why it ended with "error". The first four are the engine's, the last is the server's when it goes
# away.
ErrorCode = Literal[
    "", "invalid_request", "too_long", "queue_full", "engine_failure", "shutting_down"
]

# (token id, log probability)
Alternative = tuple[TokenId, float]
# (log probability of the chosen token, most likely alternatives first); one a token
TokenLogprob = tuple[float, list[Alternative]]
# (token id, log probability or None for the first token, alternatives); one a prompt token
PromptLogprob = tuple[TokenId, float | None, list[Alternative]]
# Seconds (waiting, from first step to first token, from there to the end)
Timings = tuple[float, float, float]


# --- server to rank


class Submit(msgspec.Struct, frozen=True, kw_only=True, tag="submit", omit_defaults=True):
    """A request. The fields are those of the native engine's submit()."""

    id: RequestId
    prompt: TokenIds
    max_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    seed: Annotated[int, Meta(ge=0)]  # to 2**64 - 1, msgpack's limit
    min_tokens: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    ignore_eos: bool = False
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=4096)] = []
    logprobs: Alternatives = -1
    prompt_logprobs: Alternatives = -1
    temperature: NonNegative = 1.0
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] = 0
    top_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 1.0
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    repetition_penalty: NonNegative = 1.0
    presence_penalty: Finite = 0.0
    frequency_penalty: Finite = 0.0
    logit_bias: Annotated[list[tuple[TokenId, Finite]], Meta(max_length=2**18)] = []


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Requests to end now. Unknown and finished ids are ignored."""

    ids: Annotated[list[RequestId], Meta(max_length=2**20)]


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the process: status 0."""


# --- rank to server


class Output(msgspec.Struct, array_like=True, omit_defaults=True):
    """What a request got in a step, or in several merged ones. The layout is that of the native
    engine's drain().
    """

    id: RequestId
    token_ids: TokenIds
    finish: Finish = ""
    error_code: ErrorCode = ""
    error: Sentence = ""
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    timings: Timings | None = None

    def merge(self, later: Output) -> None:
        """Appends a later output of the same request."""
        self.token_ids += later.token_ids
        if later.logprobs is not None:
            self.logprobs = (self.logprobs or []) + later.logprobs
        if later.prompt_logprobs is not None:
            self.prompt_logprobs = (self.prompt_logprobs or []) + later.prompt_logprobs
        if later.finish:
            self.finish = later.finish
            self.error_code = later.error_code
            self.error = later.error
            self.timings = later.timings


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The native engine's counters at the end of a step."""

    num_running: Count = 0
    num_waiting: Count = 0
    pages_total: Count = 0
    pages_free: Count = 0
    num_preemptions: Count = 0
    num_steps: Count = 0
    prompt_tokens: Count = 0
    generated_tokens: Count = 0


class StepOutputs(msgspec.Struct, frozen=True, tag="step"):
    """Everything the engine made since the last message; one message a wake of the rank's loop."""

    outputs: Annotated[list[Output], Meta(max_length=2**20)]
    stats: EngineStats


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
    # Of a GPU; 0 where the memory is the host's.
    workspace_bytes: Count = 0
    graph_bytes: Count = 0
    free_bytes: Count = 0
    num_threads: Count = 0
    device: Sentence = ""
    isa: Sentence = ""
    max_running: Count = 0
    max_batch_tokens: Count = 0


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
    """The start is over: requests are answered from now on."""

    info: EngineInfo


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The process is about to end with status 1, and why."""

    message: Sentence


FromRank = StepOutputs | PhaseReport | Ready | Failed

# --- the rank's configuration, server to rank


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """A rank's first message: the native engine's arguments. 0 and "auto" are chosen there."""

    model_path: str
    num_threads: int = 0
    kv_dtype: str = "auto"
    page_size: int = 16
    kv_cache_tokens: int = 0
    max_model_len: int = 0
    max_running: int = 256
    max_batch_tokens: int = 0
    max_waiting: int = 4096
    device: str = "auto"
    memory_fraction: float = 0.9
    num_pages: int = 0
    disable_cuda_graph: bool = False
    disable_overlap: bool = False
    load_format: str = "auto"


ToRank = Submit | Abort | Shutdown | EngineOptions

_encoder = msgspec.msgpack.Encoder()
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)


def encode(message: Any) -> bytes:
    """msgpack of any message here. Raises TypeError or OverflowError for values that have none."""
    return _encoder.encode(message)


def decode_to_rank(data: bytes) -> ToRank:
    """Raises msgspec.DecodeError for anything that isn't a ToRank message."""
    return _to_rank.decode(data)


def decode_from_rank(data: bytes) -> FromRank:
    """Raises msgspec.DecodeError for anything that isn't a FromRank message."""
    return _from_rank.decode(data)
