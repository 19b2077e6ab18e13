"""Fields of a request that OpenAI's or vLLM's API has and the schemas here don't: which of their
values mean nothing, and what a client is told about the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class KnownField(NamedTuple):
    """A field that a schema lacks. null is always neutral, and so is each value of `neutral`.

    Any other value is refused with `advice`. Where there is none, the field has no effect on the
    answer, and the log names it once.
    """

    neutral: tuple[Any, ...] = ()
    advice: str = ""

    def is_neutral(self, value: object) -> bool:
        """Whether a request with this value is the same as one without the field."""
        return value is None or value in self.neutral  # 0 is false, too


_NO_BEAMS = "leave it out, or ask for several answers with 'n'"
_NO_GRAMMAR = (
    "the form of an answer can't be constrained; describe the form in the prompt, "
    "and check the answer"
)
_TEXT_ONLY = "the model reads and writes text"
_OPERATORS = "it is for the server's operator to set"

KNOWN_FIELDS: dict[str, KnownField] = {
    "use_beam_search": KnownField((False,), _NO_BEAMS),
    "early_stopping": KnownField((False,), _NO_BEAMS),
    "length_penalty": KnownField((1.0,), _NO_BEAMS),
    "structured_outputs": KnownField(({},), _NO_GRAMMAR),
    "guided_json": KnownField((), _NO_GRAMMAR),
    "guided_regex": KnownField((), _NO_GRAMMAR),
    "guided_choice": KnownField((), _NO_GRAMMAR),
    "guided_grammar": KnownField((), _NO_GRAMMAR),
    "structural_tag": KnownField((), _NO_GRAMMAR),
    "grammar": KnownField(("",), _NO_GRAMMAR),
    "guided_decoding_backend": KnownField(),
    "guided_whitespace_pattern": KnownField(),
    "tools": KnownField(([],), "leave it out"),
    "chat_template": KnownField((), _OPERATORS + " (--chat-template)"),
    "echo": KnownField(
        (False,), "put the last message before the answer yourself, or use /v1/completions"
    ),
    "include_reasoning": KnownField(
        (True,), "an answer's reasoning isn't told from the rest; cut it off where it ends"
    ),
    "suffix": KnownField(("",), "a conversation has none; use /v1/completions"),
    "max_completion_tokens": KnownField((), "a completion's field is 'max_tokens'"),
    "top_logprobs": KnownField((0,), "a completion's field is 'logprobs'"),
    "thinking_token_budget": KnownField((-1,), "limit the whole answer with 'max_tokens'"),
    "repetition_detection": KnownField((), "use 'frequency_penalty' or 'repetition_penalty'"),
    "return_tokens_as_token_ids": KnownField((False,), "use /tokenize for the ids of a text"),
    "return_token_offsets": KnownField((False,), "use 'text_offset' of a completion's 'logprobs'"),
    "return_prompt_text": KnownField(
        (False,), "use /tokenize and /detokenize for the prompt that a conversation makes"
    ),
    "logprob_token_ids": KnownField(([],), "use 'top_logprobs', and look for the tokens there"),
    "logits_processors": KnownField(
        ([],), "use 'logit_bias', 'bad_words' or 'allowed_token_ids' in its place"
    ),
    "vllm_xargs": KnownField(({},), "it is for extensions of vLLM; leave it out"),
    "watermarking": KnownField((False,), "leave it out"),
    "prompt_embeds": KnownField((), "send the prompt as text or as token ids"),
    "kv_transfer_params": KnownField(({},), "leave it out"),
    "ec_transfer_params": KnownField(({},), "leave it out"),
    "mm_processor_kwargs": KnownField(({},), _TEXT_ONLY),
    "media_io_kwargs": KnownField(({},), _TEXT_ONLY),
    "modalities": KnownField(([], ["text"]), _TEXT_ONLY),
    "audio": KnownField((), _TEXT_ONLY),
    "web_search_options": KnownField((), "nothing is searched; put what is known into the prompt"),
    "moderation": KnownField((), "leave it out"),
    "routed_experts_prompt_start": KnownField((0,), "the choice of experts isn't returned"),
    # No effect on the answer.
    "priority": KnownField((0,)),
    "cache_salt": KnownField(),
    "request_id": KnownField(),
    "session_id": KnownField(),
    "prompt_cache_options": KnownField(),
    "stream_interval": KnownField((1,)),
    "return_mm_kwargs": KnownField((True,)),
    # Byte-level text has no other spaces than the tokens' own.
    "spaces_between_special_tokens": KnownField((True,)),
}
