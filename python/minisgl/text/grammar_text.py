"""The forms that clients give, as grammars of llguidance's: JSON schemas and Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import llguidance
import msgspec
from llguidance.gbnf_to_lark import any_to_lark

from minisgl.text.answer_form import escaped
from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.schema_check import check_schema

# White space within JSON, at each place where there may be some: none, one space, or a line break
# with what the next line begins with. Without a bound a model may write it for ever.
_WHITESPACE = r"( |\n[ \t]{0,32})"
# Without "u": a property's name could be written in two ways (schema_check.py).
_ESCAPES = 'nrbtf\\"'


class GrammarError(Exception):
    """Why there is no grammar: a sentence without a full stop."""


class Grammar(NamedTuple):
    """One of llguidance's grammars."""

    field: str  # "json_schema" or "lark_grammar"
    text: str  # JSON, or Lark


def grammars_text(grammars: dict[str, Grammar]) -> str:
    """Grammars by the names by which they use each other; the first is the whole answer's. A single
    one has no name: it can't use itself.
    """
    written = []
    for name, (field, text) in grammars.items():
        value = text if field == "json_schema" else json.dumps(text, ensure_ascii=False)
        named = f'"name":"{name}",' if len(grammars) > 1 else ""
        written.append(f'{{{named}"{field}":{value}}}')
    return f'{{"grammars":[{",".join(written)}]}}'


def form_grammar(source: GrammarSource, never_begins: Sequence[str] = ()) -> Grammar:
    """That of a form; none of its texts begins with one of `never_begins`, as far as it is made of
    an expression or of choices. GrammarError, SchemaRefused.
    """
    return _BUILDERS[source.kind](source, never_begins)


def schema_text(schema: Any, source: GrammarSource) -> str:
    """A checked schema with the options, as JSON text. SchemaRefused."""
    return with_options(check_schema(schema, closed=source.closed), source)


def with_options(schema: Any, source: GrammarSource) -> str:
    """A schema that was checked, with the options, as JSON text."""
    if isinstance(schema, bool):
        schema = {"anyOf": [schema]}
    return json.dumps({"x-guidance": _json_options(source), **schema}, ensure_ascii=False)


def lark_text(text: str) -> str:
    """A text as Lark's literal."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def one_of(texts: Sequence[str]) -> str:
    """An expression for each of some texts."""
    return "(" + "|".join(map(escaped, texts)) + ")"


def without(texts: Sequence[str]) -> str:
    """Lark's expression for any text in which none of these stands."""
    return f"~/(?s:.*){one_of(texts)}(?s:.*)/" if texts else "/(?s:.*)/"


def _json_options(source: GrammarSource) -> dict[str, Any]:
    """What x-guidance says of how JSON is written."""
    options: dict[str, Any] = {"lenient": False, "json_allowed_escapes": _ESCAPES}
    if source.compact:
        return options | {"whitespace_flexible": False}
    return options | {"whitespace_pattern": source.whitespace_pattern or _WHITESPACE}


def loads(text: str, what: str, kind: Any = Any) -> Any:
    """What is written as JSON. GrammarError, which names it."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GrammarError(f"{what} is not valid JSON: {error}") from None


def _json_grammar(source: GrammarSource, _: Sequence[str]) -> Grammar:
    return Grammar("json_schema", schema_text(loads(source.text, "the JSON schema"), source))


def _regex_grammar(source: GrammarSource, never_begins: Sequence[str]) -> Grammar:
    made = json.loads(str(llguidance.LLMatcher.grammar_from_regex(source.text)))
    lark: str = made["grammars"][0]["lark_grammar"]
    if never_begins:
        expression = lark.removeprefix("start: ")
        lark = f"start: FORM\nFORM: {expression} & ~/\\s*{one_of(never_begins)}(?s:.*)/"
    return Grammar("lark_grammar", lark)


def _choice_grammar(source: GrammarSource, never_begins: Sequence[str]) -> Grammar:
    choices = loads(source.text, "the list of choices")
    if not choices:
        raise GrammarError("the list of choices must have at least one")
    for choice in choices:
        if choice.lstrip().startswith(tuple(never_begins)):
            raise GrammarError(f"the choice {choice[:80]!r} begins as a call or a thought does")
    alternatives = " | ".join(map(lark_text, choices))
    return Grammar("lark_grammar", f"start: CHOICE\nCHOICE: {alternatives}")


def _given_grammar(source: GrammarSource, _: Sequence[str]) -> Grammar:
    try:
        lark = any_to_lark(source.text)
    except MemoryError:
        raise
    except Exception as error:  # which it raises itself, such as for a rule that isn't there
        raise GrammarError(
            f"the grammar is neither Lark's nor GBNF's: {str(error)[:300]}"
        ) from None
    return Grammar("lark_grammar", lark)


_BUILDERS: dict[str, Callable[[GrammarSource, Sequence[str]], Grammar]] = {
    "json": _json_grammar,
    "regex": _regex_grammar,
    "choice": _choice_grammar,
    "grammar": _given_grammar,
}
