"""From the description of a form to the text of a grammar that has been compiled once: the work of
the grammar process. llguidance reads schemas and grammars, and compiles them here as the engine
does, with a vocabulary of bytes.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable

import llguidance

from minisgl.text.answer_form import AnswerForm
from minisgl.text.answer_grammar import TokenReference, answer_grammars
from minisgl.text.grammar_messages import MAX_GRAMMAR_BYTES, MAX_SENTENCE, GrammarSource
from minisgl.text.grammar_text import GrammarError, form_grammar, grammars_text, loads
from minisgl.text.schema_check import SchemaRefused

# Of the thread that compiles. The engine's have at least twice as much: what goes deep here ends
# this process, and comes nowhere near theirs.
STACK_BYTES = 2**20

MAX_LEXER_STATES = 100_000  # as the engine has it (cpp/engine/grammar.cpp)

_EOS = 256  # in the vocabulary of bytes
_SPECIAL = 257  # stands for each special token of a model


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
        grammar = tried = _text(source, lambda token_id: f"<[{token_id}]>")
        # A model's special tokens aren't in this vocabulary.
        if source.kind in ("answer", "engine"):
            tried = _text(source, lambda _: f"<[{_SPECIAL}]>")
    except SchemaRefused as error:
        raise GrammarError(str(error)) from None
    if len(grammar.encode()) > MAX_GRAMMAR_BYTES:
        raise GrammarError(f"the grammar has more than {MAX_GRAMMAR_BYTES} bytes")
    if sentence := _on_small_stack(lambda: _fault(tried, tokenizer)):
        raise GrammarError(f"{_SUBJECTS[source.kind]} {sentence}")
    return grammar


def _text(source: GrammarSource, token: TokenReference) -> str:
    if source.kind == "answer":
        form = loads(source.text, "the form of the answer", AnswerForm)
        return grammars_text(answer_grammars(form, token))
    if source.kind == "engine":
        return re.sub(r"<\[([\^0-9, -]+)\]>", lambda found: token(found[1]), source.text)
    return grammars_text({"form": form_grammar(source)})


_SUBJECTS = {
    "json": "the JSON schema",
    "regex": "the regular expression",
    "choice": "the list of choices",
    "grammar": "the grammar",
    "answer": "the grammar of the answer with its calls",
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
