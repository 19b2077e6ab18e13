"""From the description of a form to the text of a grammar that has been compiled once: the work of
the grammar process. llguidance reads schemas and grammars, and compiles them here as the engine
does, with a vocabulary of bytes.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import llguidance
import msgspec
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from minisgl.text.grammar_messages import MAX_GRAMMAR_BYTES, MAX_SENTENCE, GrammarSource
from minisgl.text.schema_check import SchemaRefused, check_schema

# Of the thread that compiles. The engine's have at least twice as much: what goes deep here ends
# this process, and comes nowhere near theirs.
STACK_BYTES = 2**20

MAX_LEXER_STATES = 100_000  # as the engine has it (cpp/engine/grammar.cpp)

# White space within JSON, at each place where there may be some: none, one space, or a line break
# with what the next line begins with. Without a bound a model may write it for ever.
_WHITESPACE = r"( |\n[ \t]{0,32})"
# Without "u": a property's name could be written in two ways (schema_check.py).
_ESCAPES = 'nrbtf\\"'
_EOS = 256  # in the vocabulary of bytes
_SPECIAL = 257  # stands for each special token of a model


class GrammarError(Exception):
    """Why there is no grammar: a sentence without a full stop."""


class _Bytes:
    """A vocabulary of bytes, as llguidance asks for one."""

    bos_token_id = None
    eos_token_id = _EOS
    tokens = (*(bytes([byte]) for byte in range(256)), b"<eos>", b"<special>")
    special_token_ids = (_EOS, _SPECIAL)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def make_tokenizer() -> llguidance.LLTokenizer:
    """The vocabulary that grammars are compiled with."""
    return llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), slices=[])


def compile_grammar(source: GrammarSource, tokenizer: llguidance.LLTokenizer) -> str:
    """The grammar's text, which compiles and allows some text. GrammarError."""
    try:
        build = _BUILDERS[source.kind]
        grammar = build(source, lambda token_id: f"<[{token_id}]>")
        # A model's special tokens aren't in this vocabulary.
        has_special = source.kind in ("calls", "engine")
        tried = build(source, lambda _: f"<[{_SPECIAL}]>") if has_special else grammar
    except SchemaRefused as error:
        raise GrammarError(str(error)) from None
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar has more than {MAX_GRAMMAR_BYTES} bytes")
    if sentence := _on_small_stack(lambda: _fault(tried, tokenizer)):
        raise GrammarError(f"{_SUBJECTS[source.kind]} {sentence}")
    return grammar


_SUBJECTS = {
    "json": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
    "calls": "the grammar of the tools' calls",
    "engine": "the grammar",
}


def _on_small_stack(work: Callable[[], str]) -> str:
    result: list[str | BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    before = threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=run)
    thread.start()
    threading.stack_size(before)
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _fault(grammar: str, tokenizer: llguidance.LLTokenizer) -> str:
    """What is wrong with a grammar, to follow its name; "" where nothing is."""
    limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        if warnings := matcher.get_grammar_warnings():
            return _explain(warnings[0])
        mask = matcher.compute_bitmask()
        if not matcher.is_error():
            first = int.from_bytes(mask, "little")
            # A matcher that has come to its end allows the end of the text alone.
            if first & ~(1 << _EOS) or matcher.is_accepting():
                return ""
            return "allows no text"
    return _explain(matcher.get_error())


# What llguidance says -> what a client is told, with the keyword at fault.
_EXPLAINED = (
    (r"Unimplemented keys: \[(.*?)\]", "has keywords that are not supported: {0}"),
    (r"Unknown format: (.*)", "has a 'format' that is not supported: {0}"),
    (r"oneOf constraints are not supported", "has a 'oneOf' whose alternatives may overlap, which "
     "is not supported: make them distinct by a 'type' or by a required 'const', or use 'anyOf'"),
    (r"Invalid type: (.*)", "has a 'type' that does not exist: {0}"),
    (r"Unsatisfiable schema: (.*)", "allows no value: {0}"),
    (r"Resource '(.*?)' is not present", "has a '$ref' to another document, which is not fetched: "
     "{0}"),
    (r"circular references with sibling keys are not supported: (.*)",
     "has a circular '$ref' with keywords beside it, which is not supported: {0}"),
    (r"Pointer '(.*?)' does not exist", "has a '$ref' to what it does not have: {0}"),
    (r"are not disjoint|are disjoint", "has 'patternProperties' whose patterns may overlap, which "
     "is not supported"),
    (r"min/maxProperties only supported", "has 'minProperties' or 'maxProperties' beside "
     "'properties' that are not all 'required', which is not supported"),
    (r"NoExtension", "allows no text"),
    (r"unknown special token: (.*?);", "has a special token that it can't name: {0}"),
    (r"fuel exhausted|too large|too big|too complex|LimitExceeded|exceeds|stack level",
     "is too complex"),
)  # fmt: skip


def _explain(message: str) -> str:
    for pattern, sentence in _EXPLAINED:
        if found := re.search(pattern, message):
            return sentence.format(*found.groups())[:MAX_SENTENCE]
    if "regex" in message and "error: " in message:
        error = message.rsplit("error: ", 1)[1].split("\n")[0]
        return f"has a pattern that is not supported: {error}"[:MAX_SENTENCE]
    return f"is not supported: {message.splitlines()[0][:300] if message else 'unknown error'}"


TokenReference = Callable[[int | str], str]  # what a grammar calls tokens: an id, or "2,5-9"


def _json_options(source: GrammarSource) -> dict[str, Any]:
    """What x-guidance says of how JSON is written."""
    options: dict[str, Any] = {"lenient": False, "json_allowed_escapes": _ESCAPES}
    if source.compact:
        return options | {"whitespace_flexible": False}
    return options | {"whitespace_pattern": source.whitespace_pattern or _WHITESPACE}


def _schema_text(schema: Any, source: GrammarSource) -> str:
    """A checked schema with the options, as JSON text."""
    schema = check_schema(schema, closed=source.closed)
    if isinstance(schema, bool):
        schema = {"anyOf": [schema]}
    return json.dumps({"x-guidance": _json_options(source), **schema}, ensure_ascii=False)


def _loads(text: str, what: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise GrammarError(f"{what} is not valid JSON: {error}") from None


def _json_grammar(source: GrammarSource, _: TokenReference) -> str:
    return _grammars(json_schema=_schema_text(_loads(source.text, "the JSON schema"), source))


def _grammars(**fields: str) -> str:
    """llguidance's own form: JSON with a list of grammars, of which there is one."""
    name, text = next(iter(fields.items()))
    value = text if name == "json_schema" else json.dumps(text, ensure_ascii=False)
    return f'{{"grammars":[{{"{name}":{value}}}]}}'


def _regex_grammar(source: GrammarSource, _: TokenReference) -> str:
    return str(llguidance.LLMatcher.grammar_from_regex(source.text))


def _choice_grammar(source: GrammarSource, _: TokenReference) -> str:
    choices = _loads(source.text, "the list of choices")
    if not choices:
        raise GrammarError("the list of choices must have at least one")
    alternatives = " | ".join(map(lark_text, choices))
    return _grammars(lark_grammar=f"start: CHOICE\nCHOICE: {alternatives}")


def lark_text(text: str) -> str:
    """A text as Lark's literal."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _given_grammar(source: GrammarSource, _: TokenReference) -> str:
    try:
        lark = any_to_lark(source.text)
    except (GbnfToLarkError, RecursionError, ValueError, IndexError) as error:
        raise GrammarError(
            f"the grammar is neither Lark's nor GBNF's: {str(error)[:300]}"
        ) from None
    return _grammars(lark_grammar=lark)


def _calls_grammar(source: GrammarSource, token: TokenReference) -> str:
    calls = _loads(source.text, "the calls")
    special: dict[str, int] = calls["special_tokens"]

    def marked(text: str) -> str:
        """A text with special tokens in it, as a sequence of Lark's."""
        if not special:
            parts = [text]
        else:
            names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
            parts = re.split(f"({names})", text)
        return " ".join(
            token(special[part]) if part in special else lark_text(part) for part in parts if part
        )

    opener = calls["opener"]
    skipped = opener if opener and not calls["begin"] else ""
    rules = []
    for index, call in enumerate(calls["calls"]):
        try:
            schema = _schema_text(call["schema"], source)
        except SchemaRefused as error:
            raise GrammarError(f"tool '{call['name']}': {error}") from None
        body = (
            f"{marked(call['before'].removeprefix(skipped))} %json {schema} {marked(call['after'])}"
        )
        rules.append(f"call_{index}: {body}")
    call = " | ".join(f"call_{index}" for index in range(len(rules)))
    parallel = calls["parallel"]
    more = f"({marked(calls['between'])} call)*" if parallel and not skipped else ""
    form = f"{marked(calls['begin'].removeprefix(opener))} call {more} {marked(calls['end'])}"
    start = f"start: {form}"
    if opener:
        free = [token(token_id) for token_id in calls["free_tokens"]]
        opening = token(special[opener]) if opener in special else None
        start = "\n".join(_free_text(opener, opening, free, form, "*" if parallel else "?"))
    return _grammars(lark_grammar="\n".join(["%llguidance {}", start, f"call: {call}", *rules]))


def _free_text(
    opener: str, opening: str | None, free: list[str], form: str, times: str
) -> list[str]:
    """The rules for any text in which `form` stands behind each `opener`, whose token is `opening`
    if it has one. Two TEXT never meet: they could make an opener.
    """
    written = re.sub(r"([\\.+*?()|\[\]{}^$/])", r"\\\1", opener)
    text = ["any: " + (f"(TEXT? ({' | '.join(free)}))*" if free else '""')]
    text.append(f"TEXT: /(?s:.+)/ & ~/(?s:.*){written}(?s:.*)/")
    if opening is not None:
        return [f"start: (any TEXT? {opening} {form}){times} any TEXT?", *text]
    lead = f"lead[lazy]: /(?s:.*){written}/"
    return [f"start: (any lead {form}){times} any TEXT?", lead, *text]


def _ready_grammar(source: GrammarSource, token: TokenReference) -> str:
    return re.sub(r"<\[([\^0-9, -]+)\]>", lambda found: token(found[1]), source.text)


_BUILDERS: dict[str, Callable[[GrammarSource, TokenReference], str]] = {
    "json": _json_grammar,
    "regex": _regex_grammar,
    "choice": _choice_grammar,
    "grammar": _given_grammar,
    "calls": _calls_grammar,
    "engine": _ready_grammar,
}
