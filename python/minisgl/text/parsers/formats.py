"""What a format of calls or of thoughts says about itself, and the reader that they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import NOTHING, Flow, Markers, Source, Steps


@dataclass(frozen=True)
class ParserContext:
    """What a parser of one answer needs to know."""

    prompt_end: str  # the last characters of the prompt: a thought may begin or end there
    new_id: Callable[[], str]  # makes the id of a call
    tool_names: frozenset[str] = frozenset()  # empty: not known
    tools: list[dict[str, Any]] = field(default_factory=list)  # as the OpenAI API has them
    # The answer is held to a grammar: a call's JSON is whole up to its last bracket, and what looks
    # like a marker in it is none.
    held: bool = False
    # The answer is calls from its beginning, which are announced or bare, or it is text of a given
    # form to its last character; "": neither is said.
    form: Literal["", "announced", "bare"] = ""
    only_calls: bool = False  # it is held to calls, which thoughts may precede

    def parameters(self, name: str) -> Mapping[str, Any]:
        """The JSON schema of a function's parameters, empty where it isn't known."""
        for tool in self.tools:
            function = tool.get("function", tool)
            if isinstance(function, dict) and function.get("name") == name:
                schema = function.get("parameters")
                return schema if isinstance(schema, dict) else {}
        return {}


@dataclass(frozen=True)
class CallSyntax:
    """How a format writes calls, for grammars that hold an answer to them. In `before` and `head`,
    `{name}` stands for the function's name.
    """

    before: str  # of one call, up to its arguments
    after: str = ""
    begin: str = ""  # of all calls
    between: str = ""
    end: str = ""
    # Key of the arguments in an object with "name"; None: they stand alone.
    arguments_key: str | None = None
    # Arguments alone are one JSON value, or are written one by one: between tags, or as Python's.
    style: Literal["json", "xml", "python"] = "json"
    names: str = ".+"  # an expression for the names that functions may have
    # Of calls that nothing announces: an expression for what may begin one, and what does begin one
    # in free text, up to its arguments alone.
    like: str = ""
    head: str = ""

    def call(self, name: str, parameters: Mapping[str, Any]) -> tuple[str, dict[str, Any], str]:
        """The text before a call's arguments, the schema of these, and the text behind them."""
        before = self.before.replace("{name}", name)
        if self.arguments_key is None:
            return before, dict(parameters), self.after
        members = {"name": {"const": name}, self.arguments_key: dict(parameters)}
        schema = {
            "type": "object",
            "properties": members,
            "required": list(members),
            "additionalProperties": False,
        }
        return before, schema, self.after


# Reads what stands behind an opener: False where what is marked (source.py) is no call.
ReadCalls = Callable[[str, Source, Output, ParserContext], Steps[bool]]


@dataclass(frozen=True)
class ToolFormat:
    """A format of calls."""

    read: ReadCalls
    openers: tuple[str, ...]  # what announces calls
    closers: tuple[str, ...] = ()  # what ends a call; the last one ends all
    # Openers that are plain text elsewhere: they count at the start of a line alone, and what they
    # begin is a call where it names one of the request's functions.
    unannounced: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()  # further markers, for `markers`
    syntax: CallSyntax | None = None  # None: answers can't be held to it
    short_ids: bool = False  # nine letters and digits, as Mistral's templates demand

    @property
    def markers(self) -> frozenset[str]:
        """Texts that may be special tokens of a vocabulary, and are to be shown to the parser."""
        return frozenset((*self.openers, *self.closers, *self.inner))


@dataclass(frozen=True)
class ReasoningFormat:
    """A format of thoughts."""

    ends: Mapping[str, str]  # what begins a thought, and what ends one that begins so
    # Whether an answer is a thought from its first word on where the prompt doesn't say it.
    inside: bool = False
    same_ends: tuple[str, ...] = ()  # ends of which each ends what another would end
    wrapper: tuple[str, str] | None = None  # what may stand around the answer behind the thought
    # What a thought that its budget ends is closed with, as templates have it; `{end}` stands for
    # its end. None: thoughts can't be closed so.
    closing: str | None = "\n{end}\n\n"

    @property
    def markers(self) -> frozenset[str]:
        """Texts that may be special tokens of a vocabulary, and are to be shown to the parser."""
        return frozenset((*self.ends, *self.ends.values(), *(self.wrapper or ())))

    def ends_like(self, end: str) -> tuple[str, ...]:
        """All that ends a thought which `end` ends."""
        return self.same_ends if end in self.same_ends else (end,)

    def begins_inside(self, prompt_end: str) -> str | None:
        """What ends the thought in which the answer begins; None where it begins in none."""
        prompt = prompt_end.rstrip()
        for begin, end in self.ends.items():
            if prompt.endswith(begin):
                return end
            if prompt.endswith(end):
                return None
        return next(iter(self.ends.values())) if self.inside else None

    def ends_with(self, prompt_end: str) -> bool:
        """Whether a prompt ends behind a thought."""
        return prompt_end.rstrip().endswith(tuple(self.ends.values()))


def read_content(
    source: Source,
    out: Output,
    context: ParserContext,
    format: ToolFormat | None,
    dropped: tuple[str, ...] = (),
) -> Steps[None]:
    """Reads an answer's content: text and calls. `dropped` are markers that mean nothing."""
    # Where a grammar allows no text, what looks like some is a marker or a call that was cut.
    sink = _nowhere if context.only_calls else out.text
    openers = (*format.openers, *format.unannounced) if format else ()
    if format and context.form:
        openers = format.unannounced if context.form == "bare" else format.openers
    closers = format.closers if format else ()
    before = Markers((*openers, *dropped))
    after = Markers((*openers, *closers, *dropped)) if closers else before
    markers = before
    if context.form:
        sink((yield from source.space()))
        if not openers or not (yield from source.sees(*openers)):
            markers = NOTHING
    while True:
        marker = yield from source.until(markers, sink, into=Flow.TEXT)
        if marker is None:
            return
        if format is None or marker not in openers:
            out.marker()
            if closers and marker == closers[-1]:
                markers = before
            continue
        if marker in format.unannounced and not out.at_line_start:
            sink(marker)
            continue
        num_calls = out.num_calls
        if marker in format.unannounced:
            source.at -= len(marker)  # it is a part of the call
            source.mark()
        else:
            source.mark(marker)
        if (yield from format.read(marker, source, out, context)):
            source.commit()
        elif context.held and source.final and marker in format.openers:
            # A grammar lets nothing but a call follow what announces one: the answer was cut in it.
            source.take(len(source.text))
            source.commit()
            out.marker()
        else:
            source.retry(sink)
        if out.num_calls > num_calls:
            markers = after
        elif context.form and not num_calls:
            markers = NOTHING


def _nowhere(text: str) -> None:
    """Text that is none."""
