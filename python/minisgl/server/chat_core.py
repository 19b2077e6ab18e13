"""What every API that answers conversations shares: from a ChatRequest to what the engine is asked
for. An endpoint prepares a ChatJob, submits it to its Generation, and shapes what that gives.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from minisgl.server import checks, errors
from minisgl.server.generation import AskedPrompt, Generation
from minisgl.server.logprobs import check_prompt_logprobs
from minisgl.server.prompts import longest_prompt, longest_text, truncate
from minisgl.server.schemas import ChatRequest, FunctionTool, Message, TokenizeRequest
from minisgl.server.structured import form_of, make_grammar, refused, source_of
from minisgl.server.tools import ToolUse, plain_tools, tool_use
from minisgl.text.errors import PromptTooLong
from minisgl.text.generic_tools import describe_tools
from minisgl.text.grammars import GrammarRefused
from minisgl.text.held_answers import Demand, NotHeld
from minisgl.tokenizer import ChatTemplateError, DetokenizerOptions

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams
    from minisgl.server.state import ServerState
    from minisgl.text.answers import Owner
    from minisgl.text.formats import AnswerFormats, Parsing
    from minisgl.text.frontend import ChatPrompt, TextFrontend
    from minisgl.text.held_answers import HeldAnswer

_ANY_ARGUMENTS = {"type": "object"}
_THINKING = ("enable_thinking", "thinking")  # what templates know as the switch of thoughts
MAX_TEMPLATE_ERROR = 500  # characters


async def encode_messages(
    state: ServerState,
    request: ChatRequest | TokenizeRequest,
    messages: list[Message],
    max_tokens: int,
    *,
    functions: Sequence[FunctionTool] = (),
    owner: Owner | None = None,
) -> ChatPrompt:
    """A conversation up to where the answer begins, which may call `functions`. ApiError 400, also
    when it has surely more than `max_tokens` tokens. `owner`: whose answers may stand in it as they
    were generated.
    """
    continued = bool(request.continue_final_message)
    if continued and request.add_generation_prompt:
        raise errors.bad_request(
            "'continue_final_message' and 'add_generation_prompt' can't both be true: "
            "the answer goes on with the last message, or begins another one.",
            param="continue_final_message",
        )
    plain = checks.plain_messages(messages)
    tools = plain_tools(functions)
    if request.tools and state.formats.short_ids:
        plain = _with_short_ids(plain)
    if request.tools and state.formats.generic:
        plain, tools = describe_tools(plain, tools), []
    try:
        return await state.frontend().encode_chat(
            plain,
            template_kwargs=checks.template_variables(request),
            tools=tools or None,
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


async def count_tokens(state: ServerState, request: ChatRequest, api_key: int | None) -> int:
    """How many tokens the prompt of a conversation has, if not surely too many. ApiError 400."""
    prompt = await encode_messages(
        state,
        request,
        request.messages,
        longest_text(state.client.info.max_model_len),
        functions=tool_use(request).functions,
        owner=(api_key, request.cache_salt or None),
    )
    return len(prompt.ids)


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
    parsing: Parsing | None  # how the answers are taken apart; None: they aren't

    def submit(self, generation: Generation) -> None:
        """Adds the choices, whose answers are remembered. Raises ApiError 400, 429 or 503."""
        generation.submit(
            [AskedPrompt(self.prompt_ids, self.params, self.options)],
            n=self.n,
            bad_words=self.bad_words,
            parsing=self.parsing,
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
    use = tool_use(request)
    _check_formats(request, use, state.formats)
    info = state.client.info
    longest = longest_prompt(request, info.max_model_len)
    owner = (api_key, request.cache_salt or None)
    prompt = await encode_messages(
        state, request, request.messages, longest, functions=use.functions, owner=owner
    )
    wanted = request.max_completion_tokens
    if wanted is None:
        wanted = request.max_tokens
    prompt_ids = truncate(prompt.ids, request, checks.room_for_prompt(wanted, info.max_model_len))
    if not prompt_ids:
        raise errors.bad_request(
            "The model's chat template makes an empty prompt of the messages.", param="messages"
        )
    held = await _held(state, request, use, prompt.end, api_key)
    params = checks.sampling_params(
        request,
        state.sampling_defaults,
        max_tokens=checks.fit(len(prompt_ids), wanted, info.max_model_len, param="messages"),
        logprobs=(request.top_logprobs or 0) if request.logprobs else None,
        prompt_logprobs=request.prompt_logprobs,
        grammar=None if held is None else held.grammar,
    )
    if request.prompt_logprobs is not None:
        check_prompt_logprobs(len(prompt_ids), request.prompt_logprobs)
    tools = plain_tools(use.functions)
    parsing = state.formats.parsing(
        tools, prompt.end, parallel=use.parallel, held=None if held is None else held.answer
    )
    params = await text.with_thought(params, None if parsing is None else parsing.thought)
    options = DetokenizerOptions.of(
        params,
        include_stop=bool(request.include_stop_str_in_output),
        continues_prompt=bool(request.continue_final_message),
        shown=[] if parsing is None else state.formats.shown_tokens(tools),
    )
    bad_words = await text.encode_words(params.bad_words)
    return ChatJob(text, prompt, prompt_ids, params, options, bad_words, request.n or 1, parsing)


class _Held(NamedTuple):
    """How answers are held to what a request demands."""

    answer: HeldAnswer
    grammar: str


async def _held(
    state: ServerState, request: ChatRequest, use: ToolUse, prompt_end: str, api_key: int | None
) -> _Held | None:
    """None where an answer may be any text. ApiError 400, 429, 503."""
    text, formats = state.frontend(), state.formats
    form = form_of(request)
    if form is None and not use.required and not use.strict:
        return None
    source = None if form is None else source_of(form)
    if form is not None and source is not None:  # its faults are told as its own
        await make_grammar(text, source, form.param, api_key)
    variables = checks.template_variables(request)
    demand = Demand(
        schemas={
            one.name: one.parameters
            if use.required or one.strict or formats.one_by_one
            else _ANY_ARGUMENTS
            for one in use.functions
        },
        form=source,
        required=use.required,
        parallel=use.parallel,
        thinks=all(variables.get(name) is not False for name in _THINKING),
    )
    calls = "tool_choice" if use.required else "tools"
    try:
        answer = formats.hold(demand, prompt_end, text.tokenizer)
    except NotHeld as error:
        if error.what == "both":
            sentence = f"'tools' are not supported together with this form of the answer: {error}."
            raise errors.unsupported("tools", sentence) from None
        field = "A 'tool_choice' that forces a call" if use.required else "'strict'"
        raise errors.unsupported(calls, f"{field} is not supported: {error}.") from None
    except GrammarRefused as error:
        raise refused(error, "tools") from None
    param = "tools" if use.functions or form is None else form.param
    return _Held(answer, await make_grammar(text, answer.source, param, api_key))


def _check_formats(request: ChatRequest, use: ToolUse, formats: AnswerFormats) -> None:
    """ApiError 400 for what the model's answers can't be read for."""
    if use.functions and formats.tools is None:
        raise errors.unsupported(
            "tools",
            "Tool calls are not supported: this server reads none (--tool-call-parser). Tools are "
            "accepted with tool_choice 'none'.",
        )
    budget = request.thinking_token_budget
    if budget not in (None, -1) and not formats.limits_thoughts:
        raise errors.unsupported(
            "thinking_token_budget",
            "'thinking_token_budget' is not supported: thoughts of this model's format can't be "
            f"closed (--reasoning-parser {formats.reasoning or 'none'}).",
        )
    if request.include_reasoning is False and formats.reasoning is None:
        raise errors.unsupported(
            "include_reasoning",
            "'include_reasoning' is not supported: an answer's reasoning isn't told from the rest "
            "(--reasoning-parser).",
        )


_SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")


def _with_short_ids(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose calls have ids of 9 letters and digits: others stand for theirs."""
    shortened = []
    for message in messages:
        changes: dict[str, Any] = {}
        if "tool_call_id" in message:
            changes["tool_call_id"] = _short(message["tool_call_id"])
        if "tool_calls" in message:
            calls = message["tool_calls"]
            changes["tool_calls"] = [{**call, "id": _short(call["id"])} for call in calls]
        shortened.append({**message, **changes})
    return shortened


def _short(call_id: str) -> str:
    if _SHORT_ID.fullmatch(call_id):
        return call_id
    return hashlib.blake2b(call_id.encode("utf-8", "surrogatepass")).hexdigest()[:9]
