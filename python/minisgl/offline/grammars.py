"""From what SamplingParams say of an answer's text to what the engine is told of its tokens: the
grammar that holds it to a form, and how a thought is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minisgl.sampling_params import ParameterError, SamplingParams
from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.grammars import GrammarRefused, form_source

if TYPE_CHECKING:
    from minisgl.offline.prompts import PromptRequest
    from minisgl.text.formats import AnswerFormats
    from minisgl.text.frontend import TextFrontend


async def with_grammar(text: TextFrontend, params: SamplingParams) -> SamplingParams:
    """The parameters with a grammar in the place of structured outputs: one that the grammar
    process has compiled, which dies in the engine's place of a grammar that is too much.
    ParameterError.
    """
    form = params.structured_outputs
    if form is None and params.grammar is None:
        return params
    param = "grammar" if form is None else "structured_outputs"
    try:
        if form is not None:
            source = form_source(form)
        else:
            source = GrammarSource("engine", params.grammar or "")
        grammar = await text.grammar(source)
    except GrammarRefused as error:
        raise ParameterError(param, f"{param}: {error}") from None
    return msgspec.structs.replace(params, structured_outputs=None, grammar=grammar)


PROMPT_END_TOKENS = 64  # of a prompt without a text, which show whether a thought has begun there


async def with_budget(
    text: TextFrontend, request: PromptRequest, formats: AnswerFormats
) -> SamplingParams:
    """The request's parameters with what the budget of its thought needs. ParameterError."""
    params = request.params
    if not params.limits_thoughts:
        return params
    if not formats.limits_thoughts:
        raise ParameterError(
            "thinking_token_budget",
            "thinking_token_budget needs a model whose thoughts can be closed: LLM's "
            f"reasoning_parser is {formats.reasoning or 'none'}",
        )
    end = request.text
    if end is None:
        end = text.tokenizer.decode(request.ids[-PROMPT_END_TOKENS:], skip_special_tokens=False)
    parsing = formats.parsing([], end)
    return await text.with_thought(params, None if parsing is None else parsing.thought)
