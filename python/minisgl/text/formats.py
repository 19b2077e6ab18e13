"""Which parsers take a model's answers apart: chosen at the server's start, by the operator or from
the chat template.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minisgl.model_files.files import ModelError
from minisgl.text.generic_tools import GENERIC_PARSER
from minisgl.text.held_answers import Demand, HeldAnswer, hold
from minisgl.text.parsers import (
    REASONING_PARSERS,
    TOOL_PARSERS,
    ParserContext,
    make_parser,
    marker_tokens,
    reasoning_parser_for,
    tool_parser_for,
)
from minisgl.text.parts_reader import PartsReader
from minisgl.text.thought_table import ThoughtTable
from minisgl.tokenizer.template_source import TemplateSource

if TYPE_CHECKING:
    from minisgl.tokenizer import Tokenizer

_READS_TOOLS = re.compile(r"\btools\b")
_SHORT_ID = string.ascii_letters + string.digits
_SHORT_ID_LENGTH = 9


@dataclass(frozen=True)
class Parsing:
    """How a request's answers are taken apart."""

    tools: str | None
    reasoning: str | None
    context: ParserContext
    parallel: bool

    @property
    def counts_thoughts(self) -> bool:
        """Whether thoughts are told from the rest."""
        return self.reasoning is not None

    @property
    def thought(self) -> ThoughtTable | None:
        """How a thought's budget can be kept; None where the answer has no thought to close."""
        format = REASONING_PARSERS[self.reasoning] if self.reasoning else None
        if format is None or format.closing is None:
            return None
        return ThoughtTable(format, self.context.prompt_end)

    def reader(self, *, locates: bool = False) -> PartsReader:
        """For one choice. `locates` as PartsReader has it."""
        parser = make_parser(self.tools, self.reasoning, self.context)
        return PartsReader(parser, parallel=self.parallel, locates=locates)


@dataclass(frozen=True)
class AnswerFormats:
    """The parsers of a model. None: what they would find is part of the content."""

    tools: str | None = None
    reasoning: str | None = None
    # The chat template knows nothing of tools: generic_tools.py tells the model about them.
    generic: bool = False

    def parsing(
        self,
        tools: Sequence[dict[str, Any]],
        prompt_end: str,
        *,
        parallel: bool = True,
        held: HeldAnswer | None = None,
    ) -> Parsing | None:
        """How the answers to a prompt that ends so are taken apart, which may call these tools (as
        templates read them) and are `held` to what was demanded. None where there is nothing to
        parse.
        """
        names = self._names(tools)
        if held is not None and not held.thoughts:
            names = (names[0], None)
        if names == (None, None):
            return None
        context = ParserContext(
            prompt_end=prompt_end,
            new_id=self.new_id,
            tool_names=frozenset(tool["function"]["name"] for tool in tools),
            tools=list(tools),
            held=held is not None,
            form="" if held is None else held.form,
            only_calls=held is not None and held.only_calls,
        )
        return Parsing(*names, context, parallel)

    def hold(self, demand: Demand, prompt_end: str, tokenizer: Tokenizer) -> HeldAnswer:
        """How an answer to a prompt that ends so is held to a demand. NotHeld, GrammarRefused."""
        return hold(demand, self.tools, self.reasoning, prompt_end, tokenizer)

    def shown_tokens(self, tools: Sequence[dict[str, Any]]) -> list[str]:
        """Special tokens that such a parser needs to see, by their texts."""
        return sorted(marker_tokens(*self._names(tools)))

    def __str__(self) -> str:
        if self.generic:
            calls = f"{self.tools}, described in the system message: the chat template has no tools"
        else:
            calls = self.tools or "not read"
        return f"tool calls: {calls}; thoughts: {self.reasoning or 'a part of the content'}"

    @property
    def limits_thoughts(self) -> bool:
        """Whether thoughts can be closed when their budget is used up."""
        return self.reasoning is not None and bool(REASONING_PARSERS[self.reasoning].closing)

    @property
    def one_by_one(self) -> bool:
        """Whether a call's arguments are written one by one, each as its function's schema lists
        it: what isn't listed can't be written.
        """
        syntax = TOOL_PARSERS[self.tools].syntax if self.tools else None
        return syntax is not None and syntax.style != "json"

    def new_id(self) -> str:
        """An id for a call."""
        if self.short_ids:
            return "".join(secrets.choice(_SHORT_ID) for _ in range(_SHORT_ID_LENGTH))
        return "call_" + secrets.token_hex(12)

    @property
    def short_ids(self) -> bool:
        """Whether the model knows calls by ids of 9 letters and digits."""
        return self.tools is not None and TOOL_PARSERS[self.tools].short_ids

    def _names(self, tools: Sequence[dict[str, Any]]) -> tuple[str | None, str | None]:
        return (self.tools if tools else None, self.reasoning)


def check_names(tool_parser: str, reasoning_parser: str) -> None:
    """ModelError for what isn't a parser's name, "auto" or "none"."""
    for flag, name, parsers in (
        ("--tool-call-parser", tool_parser, TOOL_PARSERS),
        ("--reasoning-parser", reasoning_parser, REASONING_PARSERS),
    ):
        if name not in ("auto", "none", *parsers):
            known = ", ".join(sorted(parsers))
            raise ModelError(f"{flag} must be auto, none or one of {known}, got {name!r}")


def choose_formats(
    tool_parser: str, reasoning_parser: str, template: TemplateSource | None
) -> AnswerFormats:
    """The parsers by their names, of which "none" is none, and "auto" the one for the template."""
    texts = {} if template is None else template.texts
    text = texts.get("tool_use") or texts.get("default") or next(iter(texts.values()), "")
    tools = _chosen(tool_parser, tool_parser_for, text)
    reasoning = _chosen(reasoning_parser, reasoning_parser_for, text)
    reads_tools = bool(_READS_TOOLS.search(text))
    if tool_parser == "auto" and template is not None and (tools is None or not reads_tools):
        return AnswerFormats(GENERIC_PARSER, reasoning, generic=True)
    return AnswerFormats(tools, reasoning, tools == GENERIC_PARSER and not reads_tools)


def _chosen(name: str, for_template: Callable[[str], str | None], template: str) -> str | None:
    if name == "none":
        return None
    if name == "auto":
        return for_template(template)
    return name
