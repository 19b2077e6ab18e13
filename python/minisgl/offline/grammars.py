"""From the form that SamplingParams give an answer to the grammar that the engine holds it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minisgl.sampling_params import ParameterError, SamplingParams
from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.grammars import GrammarRefused, form_source

if TYPE_CHECKING:
    from minisgl.text.frontend import TextFrontend


async def with_grammar(text: TextFrontend, params: SamplingParams) -> SamplingParams:
    """The parameters with a grammar in the place of structured outputs: one that the grammar
    process has compiled, which ends of what would end the engine. ParameterError.
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
