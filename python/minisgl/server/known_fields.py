"""Fields of a request that OpenAI's or vLLM's API has and the schemas here don't: which of their
values mean nothing, and what a client is told about the others.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class KnownField(NamedTuple):
    """A field that a schema lacks. null, false, 0 and what is empty are neutral, but for the values
    in `meant`; so are the values in `neutral`.

    Any other value is refused with `advice`. Where there is none, the field has no effect on the
    answer, and the log names it once.
    """

    advice: str = ""
    neutral: tuple[Any, ...] = ()
    meant: tuple[Any, ...] = ()

    def is_neutral(self, value: object) -> bool:
        """Whether a request with this value is the same as one without the field."""
        return value in self.neutral or (not value and value not in self.meant)  # 0 is false, too


_NO_BEAMS = "leave it out, or ask for several answers with 'n'"
_OTHER_FORM = "use 'structured_outputs' with 'json', 'regex', 'choice' or 'grammar'"
_TEXT_ONLY = "the model reads and writes text"
_OPERATORS = "it is for the server's operator to set"

# Those of chat and completions.
KNOWN_FIELDS: dict[str, KnownField] = {
    "use_beam_search": KnownField(_NO_BEAMS),
    "early_stopping": KnownField(_NO_BEAMS),
    "length_penalty": KnownField(_NO_BEAMS, neutral=(1.0,)),
    "structural_tag": KnownField(_OTHER_FORM),
    "grammar": KnownField(_OTHER_FORM),
    "json_schema": KnownField(_OTHER_FORM),
    "regex": KnownField(_OTHER_FORM),
    "ebnf": KnownField(_OTHER_FORM),
    "guided_decoding_backend": KnownField(),
    "tools": KnownField("leave it out"),
    "chat_template": KnownField(_OPERATORS + " (--chat-template)"),
    "echo": KnownField("put the last message before the answer yourself, or use /v1/completions"),
    "include_reasoning": KnownField(
        "an answer's reasoning isn't told from the rest; cut it off where it ends",
        neutral=(True,),
        meant=(False,),
    ),
    "suffix": KnownField("a conversation has none; use /v1/completions"),
    "top_logprobs": KnownField("a completion's field is 'logprobs'"),
    "thinking_token_budget": KnownField(
        "a completion has no thoughts; use /v1/chat/completions", neutral=(-1,), meant=(0,)
    ),
    "repetition_detection": KnownField("use 'frequency_penalty' or 'repetition_penalty'"),
    "return_tokens_as_token_ids": KnownField("use /tokenize for the ids of a text"),
    "return_token_offsets": KnownField("use 'text_offset' of a completion's 'logprobs'"),
    "return_prompt_text": KnownField(
        "use /tokenize and /detokenize for the prompt that a conversation makes"
    ),
    "logprob_token_ids": KnownField("use 'top_logprobs', and look for the tokens there"),
    "logits_processors": KnownField(
        "use 'logit_bias', 'bad_words' or 'allowed_token_ids' in its place"
    ),
    "vllm_xargs": KnownField("it is for extensions of vLLM; leave it out"),
    "watermarking": KnownField("leave it out"),
    "prompt_embeds": KnownField("send the prompt as text or as token ids"),
    "kv_transfer_params": KnownField("leave it out"),
    "ec_transfer_params": KnownField("leave it out"),
    "mm_processor_kwargs": KnownField(_TEXT_ONLY),
    "media_io_kwargs": KnownField(_TEXT_ONLY),
    "modalities": KnownField(_TEXT_ONLY, neutral=(["text"],)),
    "audio": KnownField(_TEXT_ONLY),
    "web_search_options": KnownField(
        "nothing is searched; put what is known into the prompt",
        meant=({},),  # a search with nothing special
    ),
    "moderation": KnownField("leave it out"),
    "routed_experts_prompt_start": KnownField("the choice of experts isn't returned"),
    # No effect on the answer.
    "request_id": KnownField(),
    "session_id": KnownField(),
    "prompt_cache_options": KnownField(),
    "stream_interval": KnownField(neutral=(1,)),
    "return_mm_kwargs": KnownField(neutral=(True,), meant=(False,)),
    # Byte-level text has no other spaces than the tokens' own.
    "spaces_between_special_tokens": KnownField(neutral=(True,), meant=(False,)),
}

_AS_IT_IS = "a text is embedded as it is: put what the model expects before it yourself"
_TWO_TEXTS = "use 'text_1' and 'text_2'"

# Those of /v1/embeddings, and of /v1/score.
EMBEDDING_FIELDS: dict[str, KnownField] = {
    "embed_dtype": KnownField("embeddings have 32-bit numbers", neutral=("float32",)),
    "endianness": KnownField("numbers are little-endian", neutral=("native", "little")),
    "use_activation": KnownField("use 'normalize'", meant=(False,)),
    "input_type": KnownField(_AS_IT_IS),
    "instruction": KnownField(_AS_IT_IS),
    "prompt_name": KnownField(_AS_IT_IS),
    "chat_template": KnownField(_OPERATORS + " (--chat-template)"),
    "mm_processor_kwargs": KnownField(_TEXT_ONLY),
    "media_io_kwargs": KnownField(_TEXT_ONLY),
    # No effect on the answer.
    "request_id": KnownField(),
}
SCORE_FIELDS: dict[str, KnownField] = {
    **EMBEDDING_FIELDS,
    "queries": KnownField(_TWO_TEXTS),
    "documents": KnownField(_TWO_TEXTS),
    "items": KnownField(_TWO_TEXTS),
    "data_1": KnownField(_TWO_TEXTS),
    "data_2": KnownField(_TWO_TEXTS),
    "dimensions": KnownField("use /v1/embeddings"),
    "normalize": KnownField("a cosine doesn't depend on it", neutral=(True,), meant=(False,)),
    "encoding_format": KnownField("a score is a number", neutral=("float",)),
}

_NO_PROMPTS = "the server keeps no prompts; send the messages as 'input'"

# Those of /v1/responses. What it shares with the others counts there, too.
RESPONSES_FIELDS: dict[str, KnownField] = {
    **KNOWN_FIELDS,
    "background": KnownField("leave it out, and read the answer as it comes, with 'stream'"),
    "background_options": KnownField("nothing runs in the background; leave it out"),
    "conversation": KnownField("use 'previous_response_id', or send all items as 'input'"),
    "prompt": KnownField(_NO_PROMPTS),
    "messages": KnownField("use 'input'"),
    "context_management": KnownField("nothing is compacted; send fewer items"),
    "max_tokens": KnownField("use 'max_output_tokens'"),
    "logprobs": KnownField("use 'include', with 'message.output_text.logprobs'"),
    "reasoning_effort": KnownField("use 'reasoning.effort'"),
    "verbosity": KnownField("use 'text.verbosity'"),
    "functions": KnownField("use 'tools'"),
    "function_call": KnownField("use 'tool_choice'"),
    "personality": KnownField("say it in 'instructions'"),
    "continue_final_message": KnownField("use /v1/chat/completions"),
    "documents": KnownField("use /v1/chat/completions"),
    # No effect on the answer.
    "access_programs": KnownField(),
    "image": KnownField(),
}

_TOOLS_ONLY = "the server runs no tools itself; offer the client's own as 'tools'"

# Those of /v1/messages and /v1/messages/count_tokens.
MESSAGES_FIELDS: dict[str, KnownField] = {
    **KNOWN_FIELDS,
    "max_tokens": KnownField(),  # of an answer, where tokens of a prompt are counted
    "container": KnownField(_TOOLS_ONLY),
    "mcp_servers": KnownField(_TOOLS_ONLY),
    "thread": KnownField("the server keeps no conversations; send all messages"),
    "compaction": KnownField("nothing is compacted; send fewer messages"),
    "prompt": KnownField("use 'messages'"),
    "max_tokens_to_sample": KnownField("use 'max_tokens'"),
    "logprobs": KnownField("use /v1/chat/completions"),
    "top_logprobs": KnownField("use /v1/chat/completions"),
    "reasoning_effort": KnownField("use 'output_config.effort'"),
    "verbosity": KnownField("use 'chat_template_kwargs'"),
    "parallel_tool_calls": KnownField(
        "use 'tool_choice.disable_parallel_tool_use'", neutral=(True,), meant=(False,)
    ),
    "functions": KnownField("use 'tools'"),
    "function_call": KnownField("use 'tool_choice'"),
    "thinking_token_budget": KnownField("use 'thinking.budget_tokens'", neutral=(-1,), meant=(0,)),
    "continue_final_message": KnownField(
        "an answer goes on with the last message where that is the assistant's", meant=(False,)
    ),
    "documents": KnownField("put them into the messages as text"),
    # No effect on the answer.
    "betas": KnownField(),
    "fallbacks": KnownField(),
    "fallback_credit_token": KnownField(),
}
