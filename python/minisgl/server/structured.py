"""The form that a request gives its answer, as the grammar that the engine holds it to."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from minisgl.sampling_params import StructuredOutputsParams
from minisgl.server import errors
from minisgl.text.grammars import GrammarRefused, form_source

if TYPE_CHECKING:
    from minisgl.server.schemas import GenerationRequest, ResponseFormat
    from minisgl.text.frontend import TextFrontend
    from minisgl.text.grammar_messages import GrammarSource

_NO_TAGS = (
    "Only the types 'text', 'json_object' and 'json_schema' of 'response_format' are supported"
)


class Form(NamedTuple):
    """The form of an answer."""

    param: str  # where it stands in the request
    params: StructuredOutputsParams


def form_of(request: GenerationRequest) -> Form | None:
    """The form that a request asks for; None: any text. ApiError 400 where it asks for two."""
    forms = [form for form in (_response_format(request), _structured(request)) if form]
    pattern = request.guided_whitespace_pattern or None
    if request.guided_json is not None:
        params = StructuredOutputsParams(json=request.guided_json, whitespace_pattern=pattern)
        forms.append(Form("guided_json", params))
    if request.guided_regex:
        params = StructuredOutputsParams(regex=request.guided_regex)
        forms.append(Form("guided_regex", params))
    if request.guided_choice:
        params = StructuredOutputsParams(choice=request.guided_choice)
        forms.append(Form("guided_choice", params))
    if request.guided_grammar:
        params = StructuredOutputsParams(grammar=request.guided_grammar)
        forms.append(Form("guided_grammar", params))
    if len(forms) > 1:
        names = [form.param.split(".")[0] for form in forms]
        raise errors.bad_request(
            f"'{names[0]}' and '{names[1]}' both say what the answer looks like: send one of them.",
            param=names[1],
        )
    return forms[0] if forms else None


def _response_format(request: GenerationRequest) -> Form | None:
    given = request.response_format
    if given is None or given.type == "text":
        return None
    if not given.type:
        if given.json_schema is None and given.schema is None:
            return None
        raise errors.bad_request(
            "A 'response_format' must have a 'type'.", param="response_format.type"
        )
    if given.type == "json_schema":
        return _json_schema(given)
    if given.type != "json_object":
        raise errors.unsupported("response_format.type", f"{_NO_TAGS}, got '{given.type[:64]}'.")
    if given.schema is not None:
        return Form("response_format.schema", StructuredOutputsParams(json=given.schema))
    return Form("response_format", StructuredOutputsParams(json_object=True))


def _json_schema(given: ResponseFormat) -> Form:
    param = "response_format.json_schema.schema"
    if given.json_schema is None or given.json_schema.schema is None:
        raise errors.bad_request(
            "A 'response_format' of type 'json_schema' must have a 'json_schema' "
            "with the 'schema' in it.",
            param=param,
        )
    return Form(param, StructuredOutputsParams(json=given.json_schema.schema))


def _structured(request: GenerationRequest) -> Form | None:
    given = request.structured_outputs
    if given is None:
        return None
    if given.structural_tag is not None:
        raise errors.unsupported(
            "structured_outputs.structural_tag",
            "'structural_tag' is not supported: write it as a 'grammar'.",
        )
    forms = given.forms()
    if len(forms) != 1:
        raise errors.bad_request(
            "'structured_outputs' must have one of 'json', 'regex', 'choice', 'grammar' and "
            f"'json_object', got {' and '.join(map(repr, forms)) or 'none'}.",
            param="structured_outputs",
        )
    return Form(f"structured_outputs.{forms[0]}", given)


async def make_grammar(
    text: TextFrontend, source: GrammarSource, param: str, api_key: int | None
) -> str:
    """The text for SamplingParams.grammar, for the client with the key of this number. ApiError
    400 with `param`, 429, 503.
    """
    try:
        return await text.grammar(source, api_key)
    except GrammarRefused as error:
        raise refused(error, param) from None


def refused(error: GrammarRefused, param: str) -> errors.ApiError:
    """400: the answer can't be held to what stands at `param`."""
    sentence = str(error)
    return errors.unsupported(param, f"{sentence[0].upper()}{sentence[1:]}.")


def source_of(form: Form) -> GrammarSource:
    """The description of a form. ApiError 400 for what isn't plain JSON."""
    try:
        return form_source(form.params)
    except GrammarRefused as error:
        raise refused(error, form.param) from None


async def grammar_for(
    text: TextFrontend, request: GenerationRequest, api_key: int | None
) -> str | None:
    """The grammar of an answer that is a form alone; None: any text. ApiError 400, 429, 503."""
    form = form_of(request)
    if form is None:
        return None
    return await make_grammar(text, source_of(form), form.param, api_key)
