"""SamplingParams: how one request is sampled and when it stops, every range checked.

A parameter is described here, with its default, its range and its limit. HTTP's schemas, the
messages to the engine and the engine's binding take it from here, by name.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

import msgspec
from msgspec import Meta

MAX_TEMPERATURE = 100.0
MAX_REPETITION_PENALTY = 100.0
MAX_PENALTY = 2.0  # presence and frequency, either way
MAX_LOGIT_BIAS = 100.0
MAX_LOGPROBS = 20
MAX_N = 128
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_ALLOWED_TOKEN_IDS = 4096
MAX_BAD_WORDS = 64
MAX_BAD_WORD_CHARS = 256
MAX_GRAMMAR_CHARS = 2**20
MAX_THOUGHT_STATES = 4096
MAX_THOUGHT_BYTES = 2**24  # of ThoughtFormat.moves
MAX_CLOSING_TOKENS = 256
MAX_TOKEN_ID = 2**31 - 1
POOLINGS = ("last", "mean")
MAX_DIMENSIONS = 2**20
MIN_PRIORITY, MAX_PRIORITY = -100, 100  # of a request: lower goes first
MAX_SEED = 2**64 - 1

# What the server does with text or with several choices, and the engine never sees. Bad words reach
# it as tokens.
TEXT_FIELDS = frozenset(
    {"stop", "bad_words", "n", "skip_special_tokens", "structured_outputs", "thought"}
)


class ParameterError(ValueError):
    """A parameter of a request has a value that can't be served. The sentence is for whoever set
    it: it names the parameter, the range and the value.
    """

    def __init__(self, parameter: str, sentence: str) -> None:
        super().__init__(sentence)
        self.parameter = parameter


class StructuredOutputsParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What an answer looks like, by the names of vLLM: one of the first five."""

    json: str | dict[str, Any] | None = None  # JSON of this schema, which may be given as its text
    regex: str | None = None  # the whole answer
    choice: list[str] | None = None  # one of these
    grammar: str | None = None  # Lark, GBNF or EBNF
    json_object: bool | None = None  # any object
    # How JSON is written. Without these there may be a space or a line break where JSON has white
    # space, and objects have what other properties their schemas allow.
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None  # where a schema doesn't speak of them
    whitespace_pattern: str | None = (
        None  # an expression for what stands in the place of white space
    )

    def forms(self) -> list[str]:
        """The names of those of the first five that are given."""
        names = ("json", "regex", "choice", "grammar", "json_object")
        return [name for name in names if getattr(self, name) not in (None, False)]


class PoolingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What a prompt's embedding is made of: the hidden states that the model's head would read, of
    its last token or the mean over all its tokens. Raises ParameterError; a decoder,
    ValidationError.
    """

    pooling: str = "last"  # or "mean"
    normalize: bool = True  # to length 1
    dimensions: int | None = None  # the first so many alone, cut off before that; None: all

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise ParameterError(
                "pooling", f"pooling must be {' or '.join(POOLINGS)}, got {_shown(self.pooling)}"
            )
        _check_bool("normalize", self.normalize)
        if self.dimensions is not None:
            _check_int("dimensions", self.dimensions, 1, MAX_DIMENSIONS)

    def engine_fields(self) -> dict[str, Any]:
        """What the engine is told, by name."""
        return {
            "pooling": self.pooling,
            "normalize": self.normalize,
            "dimensions": self.dimensions or 0,
        }


class ThoughtFormat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an answer's tokens say whether it thinks: states, of which the first is the answer's
    beginning, and where tokens move them. text/thought_table.py makes it.
    """

    # The number of the thought that each state is in, -1 before any. Within a thought, a token that
    # `moves` doesn't name leads to the thought's first state.
    thoughts: Annotated[list[int], Meta(min_length=1, max_length=MAX_THOUGHT_STATES)]
    # (state, token, next state) as 32-bit integers, sorted; -1: there is no thought, or none any
    # more. A token moves each state of a thought as it moves the first, but for those named there.
    moves: Annotated[bytes, Meta(max_length=MAX_THOUGHT_BYTES)]
    # The tokens that close each thought.
    closings: Annotated[
        list[Annotated[list[int], Meta(min_length=1, max_length=MAX_CLOSING_TOKENS)]],
        Meta(min_length=1, max_length=MAX_THOUGHT_STATES),
    ]

    def engine_fields(self) -> dict[str, Any]:
        """What the engine is told, by name."""
        return {
            "thought_states": self.thoughts,
            "thought_moves": self.moves,
            "thought_closings": self.closings,
        }


class SamplingParams(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Sampling parameters of one request. Raises ParameterError; a decoder, ValidationError."""

    max_tokens: int = 16  # tokens generated at most; 0: only the prompt is computed
    min_tokens: int = 0  # stop tokens are banned, stop strings passed over before that many
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 or -1 is off
    top_p: float = 1.0  # 1 is off, 0 is greedy
    min_p: float = 0.0  # 0 is off
    repetition_penalty: float = 1.0  # over prompt and output; 1 is off
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: dict[int, float] = {}  # token id -> added to its logit
    bad_words: list[str] = []  # texts that are not generated, each with and without a space before
    # No other token is drawn; None: any may be. It is refused where bad_words, with the stop tokens
    # that min_tokens bans, leave none of these. It outweighs a ban that depends on the output.
    allowed_token_ids: list[int] | None = None
    # What the answer is written by: llguidance's text, Lark or JSON with a list of grammars. It is
    # stronger than bad words, than the stop tokens that min_tokens bans and than ignore_eos. A
    # request whose grammar and allowed_token_ids leave nothing ends with an error. It is compiled
    # within limits of time, memory and stack before the engine is asked.
    grammar: str | None = None
    # The same in another form, from which `grammar` is made before the engine is asked.
    structured_outputs: StructuredOutputsParams | None = None
    # How many tokens a thought may have before it is closed; None and -1: any number. They count
    # from what begins the thought, in the prompt or in the answer.
    thinking_token_budget: int | None = None
    # What the engine must know for that, made before it is asked.
    thought: ThoughtFormat | None = None
    seed: int | None = None  # None: drawn anew for each request
    stop: list[str] = []  # generation ends before the first of these
    stop_token_ids: list[int] = []  # besides the model's own end tokens
    ignore_eos: bool = False
    n: int = 1  # completions for the prompt
    logprobs: int | None = (
        None  # None: no logprobs; else how many alternatives come with each token
    )
    prompt_logprobs: int | None = None  # the same for the prompt's tokens
    skip_special_tokens: bool = True  # in the text
    speculate: bool = True  # may have drafts where the engine makes them (--speculate)
    # The prompt's embedding comes in place of tokens, which max_tokens must allow none of.
    pooling: PoolingParams | None = None
    # The number of the LoRA adapter, as the engine has loaded it; 0: none. Where requests name
    # adapters, whoever serves them sets it.
    adapter: int = 0

    def __post_init__(self) -> None:
        _check_int("max_tokens", self.max_tokens, 0, MAX_TOKEN_ID)
        _check_int("min_tokens", self.min_tokens, 0, MAX_TOKEN_ID)
        _check_int("adapter", self.adapter, 0, MAX_TOKEN_ID)
        if self.min_tokens > self.max_tokens:
            raise ParameterError(
                "min_tokens",
                f"min_tokens must be at most max_tokens ({self.max_tokens}), got {self.min_tokens}",
            )
        _check_float("temperature", self.temperature, 0, MAX_TEMPERATURE)
        _check_int("top_k", self.top_k, -1, MAX_TOKEN_ID)
        _check_float("top_p", self.top_p, 0, 1)
        _check_float("min_p", self.min_p, 0, 1)
        _check_float(
            "repetition_penalty", self.repetition_penalty, 0, MAX_REPETITION_PENALTY, above_low=True
        )
        if is_float32_zero(self.repetition_penalty):
            raise ParameterError(
                "repetition_penalty",
                "repetition_penalty must be above 0 as a 32-bit number, where "
                f"{self.repetition_penalty!r} is 0",
            )
        _check_float("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_float("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_logit_bias(self.logit_bias)
        if self.seed is not None:
            _check_int("seed", self.seed, 0, MAX_SEED)
        _check_texts("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
        _check_token_ids("stop_token_ids", self.stop_token_ids, MAX_STOP_TOKEN_IDS)
        if self.allowed_token_ids is not None:
            _check_token_ids("allowed_token_ids", self.allowed_token_ids, MAX_ALLOWED_TOKEN_IDS)
            if not self.allowed_token_ids:
                raise ParameterError(
                    "allowed_token_ids",
                    "allowed_token_ids must have at least 1 entry where it is given, got []",
                )
        if self.grammar is not None:
            _check_grammar(self.grammar)
        if self.structured_outputs is not None:
            _check_form(self.structured_outputs, self.grammar)
        if self.thinking_token_budget is not None:
            _check_int("thinking_token_budget", self.thinking_token_budget, -1, MAX_TOKEN_ID)
        _check_bool("ignore_eos", self.ignore_eos)
        _check_int("n", self.n, 1, MAX_N)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _check_bool("skip_special_tokens", self.skip_special_tokens)
        _check_bool("speculate", self.speculate)
        if self.pooling is not None:
            self._check_pooling()

    def _check_pooling(self) -> None:
        if not isinstance(self.pooling, PoolingParams):
            raise ParameterError(
                "pooling", f"pooling must be PoolingParams, got {_shown(self.pooling)}"
            )
        for name, needed in (("max_tokens", 0), ("n", 1), ("prompt_logprobs", None)):
            if (value := getattr(self, name)) != needed:
                raise ParameterError(
                    name, f"{name} must be {needed} where pooling is given, got {value}"
                )

    def engine_fields(self) -> dict[str, Any]:
        """What the engine is told, by name; what is None is left out."""
        fields = {
            name: value
            for name in self.__struct_fields__
            if name not in TEXT_FIELDS and (value := getattr(self, name)) is not None
        }
        for part in (self.pooling, self.thought):
            if part is not None:
                fields |= part.engine_fields()
        return fields

    @property
    def limits_thoughts(self) -> bool:
        """Whether a thought has a budget."""
        return self.thinking_token_budget is not None and self.thinking_token_budget >= 0

    def check_tokens(self, vocab_size: int) -> None:
        """ParameterError for a token id that isn't the model's."""
        for field, ids in (
            ("logit_bias", self.logit_bias),
            ("stop_token_ids", self.stop_token_ids),
            ("allowed_token_ids", self.allowed_token_ids or ()),
        ):
            for token_id in ids:
                if token_id >= vocab_size:
                    raise ParameterError(
                        field,
                        f"{field} must hold token ids between 0 and {vocab_size - 1}, "
                        f"got {token_id}",
                    )


def pooled_params(pooling: PoolingParams) -> SamplingParams:
    """What the engine is asked for where a prompt's embedding is all that is needed."""
    return SamplingParams(max_tokens=0, seed=0, pooling=pooling)  # nothing is drawn


def is_float32_zero(value: float) -> bool:
    """Whether a value that isn't negative is 0 for the engine, whose numbers have 32 bits."""
    return value <= 2.0**-150  # half of the least one above 0


def shortened(text: str) -> str:
    """A text as messages show it, cut where it is long (a client chose it)."""
    return text if len(text) <= 80 else text[:77] + "..."


def _shown(value: object) -> str:
    return shortened(_int_text(value) if isinstance(value, int) else repr(value))


def _int_text(value: int) -> str:
    # repr of a huge integer is quadratic and refused by Python past 4300 digits.
    return repr(value) if value.bit_length() <= 256 else f"a number of {value.bit_length()} bits"


def _check_int(field: str, value: object, low: int, high: int, what: str = "") -> None:
    """`what` of the field it is; by default all of it."""
    what = what or field
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(
            field, f"{what} must be an integer between {low} and {high}, got {_shown(value)}"
        )
    if not low <= value <= high:
        raise ParameterError(field, f"{what} must be between {low} and {high}, got {_shown(value)}")


def _check_float(
    field: str, value: object, low: float, high: float, *, above_low: bool = False, what: str = ""
) -> None:
    what = what or field
    span = f"above {low:g} and at most {high:g}" if above_low else f"between {low:g} and {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ParameterError(field, f"{what} must be a number {span}, got {_shown(value)}")
    inside = low < value <= high if above_low else low <= value <= high
    if not inside or (isinstance(value, float) and not math.isfinite(value)):
        raise ParameterError(field, f"{what} must be {span}, got {_shown(value)}")


def _check_bool(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ParameterError(field, f"{field} must be true or false, got {_shown(value)}")


def _check_list(field: str, value: object, max_length: int) -> None:
    if not isinstance(value, list):
        raise ParameterError(field, f"{field} must be a list, got {_shown(value)}")
    if len(value) > max_length:
        raise ParameterError(
            field, f"{field} must have at most {max_length} entries, got {len(value)}"
        )


def _check_token_ids(field: str, value: list[int], max_length: int) -> None:
    _check_list(field, value, max_length)
    for token_id in value:
        _check_int(field, token_id, 0, MAX_TOKEN_ID, f"{field}' entries")


def _check_logit_bias(value: object) -> None:
    field = "logit_bias"
    if not isinstance(value, dict):
        raise ParameterError(field, f"{field} must map token ids to numbers, got {_shown(value)}")
    if len(value) > MAX_LOGIT_BIAS_ENTRIES:
        raise ParameterError(
            field, f"{field} must have at most {MAX_LOGIT_BIAS_ENTRIES} entries, got {len(value)}"
        )
    for token_id, bias in value.items():
        _check_int(field, token_id, 0, MAX_TOKEN_ID, f"{field}'s token ids")
        what = f"{field} of token {token_id}"
        _check_float(field, bias, -MAX_LOGIT_BIAS, MAX_LOGIT_BIAS, what=what)


def _check_grammar(value: object) -> None:
    if not isinstance(value, str):
        raise ParameterError("grammar", f"grammar must be a string, got {_shown(value)}")
    if not 1 <= len(value) <= MAX_GRAMMAR_CHARS:
        raise ParameterError(
            "grammar", f"grammar must have 1 to {MAX_GRAMMAR_CHARS} characters, got {len(value)}"
        )
    if "\0" in value:
        raise ParameterError("grammar", "grammar must not have a character NUL")
    _check_unicode("grammar", value)


def _check_form(value: object, grammar: str | None) -> None:
    field = "structured_outputs"
    if not isinstance(value, StructuredOutputsParams):
        raise ParameterError(field, f"{field} must be StructuredOutputsParams, got {_shown(value)}")
    if grammar is not None:
        raise ParameterError(field, f"{field} and grammar can't both be given")
    forms = value.forms()
    if len(forms) != 1:
        raise ParameterError(
            field,
            f"{field} must have one of json, regex, choice, grammar and json_object, "
            f"got {', '.join(forms) or 'none'}",
        )


def _check_unicode(field: str, text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        shown = ascii(text[max(0, error.start - 20) : error.start + 20])
        raise ParameterError(
            field, f"{field} must hold valid Unicode text, got a lone surrogate in {shown}"
        ) from None


def _check_texts(field: str, value: object, max_length: int, max_chars: int) -> None:
    _check_list(field, value, max_length)
    assert isinstance(value, list)
    for text in value:
        if not isinstance(text, str) or not 1 <= len(text) <= max_chars:
            raise ParameterError(
                field,
                f"{field} must hold strings of 1 to {max_chars} characters, got {_shown(text)}",
            )
        _check_unicode(field, text)
