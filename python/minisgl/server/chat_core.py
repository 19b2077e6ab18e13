"""What every API that answers conversations shares: from a ChatRequest to what the engine is asked
for. An endpoint prepares a ChatJob, submits it to its Generation, and shapes what that gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minisgl.server import checks, errors
from minisgl.server.logprobs import check_prompt_logprobs
from minisgl.server.prompts import longest_prompt, truncate
from minisgl.server.schemas import ChatRequest, Message, TokenizeRequest
from minisgl.text.errors import PromptTooLong
from minisgl.tokenizer import ChatTemplateError, DetokenizerOptions

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams
    from minisgl.server.generation import Generation
    from minisgl.server.state import ServerState
    from minisgl.text.answers import Owner
    from minisgl.text.frontend import ChatPrompt, TextFrontend

MAX_TEMPLATE_ERROR = 500  # characters


async def encode_messages(
    text: TextFrontend,
    request: ChatRequest | TokenizeRequest,
    messages: list[Message],
    max_tokens: int,
    owner: Owner | None = None,
) -> ChatPrompt:
    """A conversation up to where the answer begins. ApiError 400, also when it has surely more
    than `max_tokens` tokens. `owner`: whose answers may stand in it as they were generated.
    """
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        raise errors.bad_request(
            "'continue_final_message' and 'add_generation_prompt' can't both be true: "
            "the answer goes on with the last message, or begins another one.",
            param="continue_final_message",
        )
    try:
        return await text.encode_chat(
            checks.plain_messages(messages),
            template_kwargs=checks.template_variables(request),
            add_generation_prompt=request.add_generation_prompt is not False and not continued,
            continue_final_message=continued,
            add_special_tokens=bool(request.add_special_tokens),
            max_tokens=max_tokens,
            owner=owner,
        )
    except ChatTemplateError as error:  # says what the template has against the messages
        raise errors.bad_request(str(error)[:MAX_TEMPLATE_ERROR], param="messages") from None
    except PromptTooLong as error:
        raise errors.surely_too_long(error, "messages") from None


@dataclass(frozen=True)
class ChatJob:
    """A conversation that is ready for the engine."""

    text: TextFrontend
    prompt: ChatPrompt
    prompt_ids: list[int]  # those of the prompt that are left of it
    params: SamplingParams
    options: DetokenizerOptions
    bad_words: list[list[int]]
    n: int

    def submit(self, generation: Generation) -> None:
        """Adds the choices, whose answers are remembered. Raises ApiError 400, 429 or 503."""
        generation.submit(
            self.prompt_ids, self.params, self.options, n=self.n, bad_words=self.bad_words
        )
        generation.on_answer = lambda choice: self.text.remember(
            self.prompt, choice.shown_ids, self.options
        )


async def prepare(state: ServerState, request: ChatRequest, api_key: int | None) -> ChatJob:
    """What the engine is to be asked for, by the client with the key of this number. ApiError 400
    for what can't be honoured or doesn't fit, 503.
    """
    checks.check_chat(request)
    text = state.frontend()
    info = state.client.info
    longest = longest_prompt(request, info.max_model_len)
    owner = (api_key, request.cache_salt or None)
    prompt = await encode_messages(text, request, request.messages, longest, owner)
    wanted = request.max_completion_tokens
    if wanted is None:
        wanted = request.max_tokens
    prompt_ids = truncate(prompt.ids, request, checks.room_for_prompt(wanted, info.max_model_len))
    if not prompt_ids:
        raise errors.bad_request(
            "The model's chat template makes an empty prompt of the messages.", param="messages"
        )
    params = checks.sampling_params(
        request,
        state.sampling_defaults,
        max_tokens=checks.fit(len(prompt_ids), wanted, info.max_model_len, param="messages"),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
    )
    if request.prompt_logprobs is not None:
        check_prompt_logprobs(len(prompt_ids), request.prompt_logprobs)
    options = DetokenizerOptions.of(
        params,
        include_stop=bool(request.include_stop_str_in_output),
        continues_prompt=bool(request.continue_final_message),
    )
    bad_words = await text.encode_words(params.bad_words)
    return ChatJob(text, prompt, prompt_ids, params, options, bad_words, request.n or 1)
