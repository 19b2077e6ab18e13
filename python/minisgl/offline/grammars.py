"""From the form that SamplingParams give an answer to the grammar that the engine holds it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from minisgl.sampling_params import ParameterError, SamplingParams
from minisgl.text.grammars import GrammarRefused, form_source

if TYPE_CHECKING:
    from minisgl.text.frontend import TextFrontend


async def with_grammar(text: TextFrontend, params: SamplingParams) -> SamplingParams:
    """The parameters with a grammar in the place of structured outputs. ParameterError."""
    form = params.structured_outputs
    if form is None:
        return params
    try:
        grammar = await text.grammar(form_source(form))
    except GrammarRefused as error:
        raise ParameterError("structured_outputs", f"structured_outputs: {error}") from None
    return msgspec.structs.replace(params, structured_outputs=None, grammar=grammar)
