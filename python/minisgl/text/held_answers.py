"""What an answer is held to, in the words of its model: the form of calls, of thoughts before them,
and of a form that a client gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from minisgl.text.answer_form import (
    AnswerForm,
    CallForm,
    CallsForm,
    FreeText,
    ThoughtForm,
    escaped,
)
from minisgl.text.grammars import answer_source
from minisgl.text.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    CallSyntax,
    ReasoningFormat,
    ToolFormat,
    is_harmony,
    marker_tokens,
)
from minisgl.text.parsers.harmony import ALL, CALL, FINAL, NEXT, PREAMBLE, THOUGHT
from minisgl.text.parsers.json_text import is_name

if TYPE_CHECKING:
    from minisgl.text.grammar_messages import GrammarSource
    from minisgl.tokenizer import Tokenizer

_DEFINITIONS = ("$defs", "definitions")
_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_ALTERNATIVES = {"$ref", "anyOf", "oneOf", "allOf"}

FormReading = Literal["", "announced", "bare"]  # ParserContext.form


class NotHeld(ValueError):  # noqa: N818
    """What an answer can't be held to in the model's form: a sentence without a full stop."""

    def __init__(self, what: Literal["calls", "both"], sentence: str) -> None:
        """`both`: calls could be, without a form of the answer beside them."""
        super().__init__(sentence)
        self.what = what


@dataclass(frozen=True)
class Demand:
    """What an answer is to be."""

    schemas: Mapping[str, dict[str, Any] | None]  # of arguments, by functions' names; None: none
    form: GrammarSource | None  # that it has where it calls nothing
    required: bool  # it is calls and nothing else
    parallel: bool  # it may be more than one call
    thinks: bool  # its model may open a thought


class HeldAnswer(NamedTuple):
    """How an answer is held to a demand, and read."""

    source: GrammarSource
    form: FormReading = ""
    thoughts: bool = True  # whether thoughts are told from the rest
    only_calls: bool = False  # ParserContext's


def hold(
    demand: Demand, tools: str | None, reasoning: str | None, prompt_end: str, tokenizer: Tokenizer
) -> HeldAnswer:
    """For a model with the formats of these names. NotHeld, GrammarRefused."""
    tools = tools if demand.schemas else None
    tool_format = TOOL_PARSERS[tools] if tools else None
    if is_harmony(tools, reasoning):
        form = _harmony(demand, tool_format, thinks=bool(reasoning and demand.thinks))
        reading: FormReading = "announced" if demand.form and not demand.required else ""
    else:
        thought = REASONING_PARSERS[reasoning] if reasoning else None
        thoughts, needed = _thoughts(thought, prompt_end, thinks=demand.thinks)
        if tool_format is None and not thoughts:
            assert demand.form is not None
            return HeldAnswer(demand.form, "announced", thoughts=False)
        reading = _reading(demand, tool_format, tools)
        form = _form(demand, tool_format, tools, reading)
        form = msgspec.structs.replace(form, thoughts=thoughts, needs_thought=needed)
    form = _with_tokens(form, marker_tokens(tools, reasoning), tokenizer)
    return HeldAnswer(
        answer_source(form),
        reading,
        thoughts=bool(form.thoughts or form.before_form) or not reading,
        only_calls=demand.required,
    )


def _thoughts(
    format: ReasoningFormat | None, prompt_end: str, *, thinks: bool
) -> tuple[list[ThoughtForm], bool]:
    """The thoughts with one of which an answer may begin, and whether it has to."""
    if format is None:
        return [], False
    end = format.begins_inside(prompt_end)
    if end is not None:
        return [ThoughtForm(list(format.ends_like(end)))], True
    if not thinks or format.ends_with(prompt_end):
        return [], False
    return [
        ThoughtForm(list(format.ends_like(end)), begin) for begin, end in format.ends.items()
    ], False


def _reading(demand: Demand, format: ToolFormat | None, name: str | None) -> FormReading:
    """How calls are told from the form that they may stand for."""
    if demand.form is None or demand.required:
        return ""
    if format is not None and format.syntax is not None and format.syntax.head:
        if _told_apart(demand.form, format.syntax):
            return "bare"
        if not format.openers:
            sentence = f"the model writes calls that aren't told from such answers ({name})"
            raise NotHeld("both", sentence)
    return "announced"


def _told_apart(form: GrammarSource, syntax: CallSyntax) -> bool:
    """Whether no text of a form looks like a call that nothing announces."""
    if form.kind == "choice":
        return not any(one.lstrip().startswith(("{", "[")) for one in json.loads(form.text))
    if form.kind != "json":
        return False
    if syntax.style == "python":
        return True
    try:
        schema = json.loads(form.text)
    except (ValueError, RecursionError):
        return False
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return (
        isinstance(properties, dict)
        and schema.get("type") == "object"
        and "name" not in properties
        and (schema.get("additionalProperties", not form.closed) is False)
        and {*_ALTERNATIVES, "patternProperties"}.isdisjoint(schema)
    )


def _form(
    demand: Demand, format: ToolFormat | None, name: str | None, reading: FormReading
) -> AnswerForm:
    """An answer without its thoughts."""
    if format is None:
        return AnswerForm(form=demand.form)
    syntax = format.syntax
    if syntax is None:
        raise NotHeld("calls", f"the model writes calls in a form without a grammar ({name})")
    begin = syntax.begin
    free = demand.form is None and not demand.required
    if reading == "announced":
        opener = format.openers[0]
        if not (begin or syntax.before).startswith(opener):
            begin = opener + begin
    if free and syntax.head:
        return _free_and_bare(demand, format, syntax)
    calls = CallsForm(
        [_call(one, schema, syntax) for one, schema in demand.schemas.items()],
        begin,
        syntax.between,
        syntax.end,
        demand.parallel,
    )
    if free:
        return AnswerForm(calls=calls, free=FreeText(list(format.openers), syntax.like))
    if demand.required:
        return AnswerForm(calls=calls)
    openers = list(format.openers) if reading == "announced" else []
    return AnswerForm(form=demand.form, calls=calls, never_begins=openers)


def _free_and_bare(demand: Demand, format: ToolFormat, syntax: CallSyntax) -> AnswerForm:
    """Any text, and calls that nothing announces."""
    calls, heads = [], []
    for name, schema in demand.schemas.items():
        call = _call(name, schema, syntax)
        if syntax.arguments_key is not None:  # its name is read before its arguments
            before = json.dumps({"name": name, syntax.arguments_key: 0})[:-2]
            call = CallForm(name, before, _whole(name, schema), "}")
        calls.append(call)
        written = name if syntax.arguments_key is None else json.dumps(name)[1:-1]
        heads.append(syntax.head.replace("{name}", escaped(written)))
    like = syntax.like.replace("{names}", "|".join(map(escaped, demand.schemas)))
    return AnswerForm(
        calls=CallsForm(calls, "", syntax.between, syntax.end, demand.parallel),
        free=FreeText(list(format.openers), like, heads),
    )


def _harmony(demand: Demand, format: ToolFormat | None, *, thinks: bool) -> AnswerForm:
    """An answer of messages: thoughts, then one that is content or a call."""
    markers = list(ALL.texts)
    free = demand.form is None and not demand.required
    begins = [THOUGHT, PREAMBLE] if free else [THOUGHT] if thinks else []
    thoughts = [ThoughtForm(["<|end|>"], begin, NEXT, markers) for begin in begins]
    calls = None
    if format is not None:
        if format.syntax is not CALL:
            raise NotHeld("calls", "the model's thoughts have a form that has calls of its own")
        calls = CallsForm(
            [_call(name, schema, CALL) for name, schema in demand.schemas.items()],
            parallel=False,
        )
    return AnswerForm(
        thoughts=thoughts,
        several_thoughts=True,
        form=None if demand.required else demand.form,
        before_form=FINAL,
        calls=calls,
        free=FreeText(markers) if free else None,
    )


def _call(name: str, schema: dict[str, Any] | None, syntax: CallSyntax) -> CallForm:
    if not is_name(name) or not re.fullmatch(syntax.names, name):
        raise NotHeld("calls", f"the model can't write a call of a function named '{name[:64]}'")
    schema = _whole(name, schema)
    if syntax.arguments_key is None:
        before, whole, after = syntax.call(name, schema)
        return CallForm(name, before, whole, after, syntax.style)
    definitions = {key: schema[key] for key in _DEFINITIONS if key in schema}
    rest = {key: schema[key] for key in schema if key not in definitions}
    before, whole, after = syntax.call(name, rest)
    # References to definitions count from the root.
    return CallForm(name, before, {**whole, **definitions}, after)


def _whole(name: str, schema: dict[str, Any] | None) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    if schema is None:
        return _NO_ARGUMENTS
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise NotHeld("calls", f"the 'parameters' of '{name[:64]}' are not those of an object")
    if "type" not in schema and not _ALTERNATIVES.isdisjoint(schema):
        return schema
    return {**schema, "type": "object"}


def _with_tokens(form: AnswerForm, shown: frozenset[str], tokenizer: Tokenizer) -> AnswerForm:
    """The form with the ids of those of its markers that are tokens of their own."""
    ids = {
        token: token_id
        for token_id, token in tokenizer.added_tokens.items()
        if token in shown and tokenizer.is_no_text(token_id)
    }
    texts = [form.before_form]
    for thought in form.thoughts:
        texts += [thought.begin, *thought.ends, thought.after, *thought.excluded]
    if form.calls is not None:
        texts += [form.calls.begin, form.calls.between, form.calls.end]
        texts += [text for one in form.calls.calls for text in (one.before, one.after)]
    if form.free is not None:
        texts += form.free.openers
    special = {token: ids[token] for token in ids if any(token in text for text in texts)}
    return msgspec.structs.replace(
        form,
        shown_tokens=sorted(ids.values()),
        special_tokens=special,
        never_begins=[*form.never_begins, *(one.begin for one in form.thoughts if one.begin)]
        if form.form is not None and not form.before_form
        else [],
    )
