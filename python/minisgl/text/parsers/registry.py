"""Formats by name, the choice from a chat template's text, and the parser of one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from minisgl.text.parsers import deepseek, mistral, objects, pythonic, qwen3_coder, thoughts
from minisgl.text.parsers.formats import (
    ParserContext,
    ReasoningFormat,
    ToolFormat,
    read_content,
)
from minisgl.text.parsers.harmony import ALL, CALL, read_harmony
from minisgl.text.parsers.output import Output
from minisgl.text.parsers.source import Source, Steps
from minisgl.text.parts import AnswerParser, Part, Passage, Thought

if TYPE_CHECKING:
    from minisgl.tokenizer.whole_texts import Reading


def _no_reader(opener: str, source: Source, out: Output, context: ParserContext) -> Steps[bool]:
    raise AssertionError("harmony's answers are read as a whole")
    yield


# Harmony's messages are both thoughts and calls.
_HARMONY_TOOLS = ToolFormat(read=_no_reader, openers=ALL.texts, syntax=CALL)
_HARMONY_THOUGHTS = ReasoningFormat({text: text for text in ALL.texts}, closing=None)

TOOL_PARSERS: Mapping[str, ToolFormat] = {
    "hermes": objects.HERMES,
    "qwen3_coder": qwen3_coder.QWEN3_CODER,
    "qwen3_xml": qwen3_coder.QWEN3_CODER,
    "llama3_json": objects.LLAMA3_JSON,
    "llama4_json": objects.LLAMA3_JSON,
    "pythonic": pythonic.PYTHONIC,
    "llama4_pythonic": pythonic.PYTHONIC,
    "mistral": mistral.MISTRAL,
    "mistral_args": mistral.MISTRAL_ARGS,
    "deepseek_v3": deepseek.DEEPSEEK_V3,
    "deepseek_v31": deepseek.DEEPSEEK_V31,
    "openai": _HARMONY_TOOLS,
    "granite": objects.GRANITE,
    "json": objects.JSON,
}
REASONING_PARSERS: Mapping[str, ReasoningFormat] = {
    "think": thoughts.THINK,
    "qwen3": thoughts.THINK,
    "deepseek_r1": thoughts.DEEPSEEK_R1,
    "deepseek_v3": thoughts.THINK,  # V3.1: the prompt says whether it thinks
    "openai_gptoss": _HARMONY_THOUGHTS,
    "gpt_oss": _HARMONY_THOUGHTS,
    "granite": thoughts.GRANITE_THINK,
    "mistral": thoughts.MISTRAL_THINK,
}


def is_harmony(tools: str | None, reasoning: str | None) -> bool:
    """Whether a format of one of these names makes of an answer a sequence of messages."""
    return (tools is not None and TOOL_PARSERS[tools] is _HARMONY_TOOLS) or (
        reasoning is not None and REASONING_PARSERS[reasoning] is _HARMONY_THOUGHTS
    )


def tool_parser_for(template: str) -> str | None:
    """The name of the format of calls that a chat template writes; None where it knows of none."""
    if "<|channel|>" in template:
        return "openai"
    if deepseek.CALL_BEGIN in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    if "<function=" in template:
        return "qwen3_coder"
    if "[TOOL_CALLS]" in template:
        return "mistral_args" if "[ARGS]" in template else "mistral"
    if "<|tool_call|>" in template:
        return "granite"
    if "<tool_call>" in template:
        return "hermes"
    if "[func_name" in template or "<|python_start|>" in template:
        return "pythonic"
    if "<|python_tag|>" in template or '"parameters": dictionary of argument' in template:
        return "llama3_json"
    return None


def reasoning_parser_for(template: str) -> str | None:
    """The name of the format of thoughts that a chat template writes; None where it has none."""
    if "<|channel|>" in template:
        return "gpt_oss"
    if "[THINK]" in template:
        return "mistral"
    if "Here is my thought process" in template or "<response>" in template:
        return "granite"
    if "<think>" not in template and "</think>" not in template:
        return None
    if "<\uff5cAssistant\uff5c>" in template:
        return "deepseek_r1"
    return "qwen3" if "enable_thinking" in template else "think"


def marker_tokens(tools: str | None, reasoning: str | None) -> frozenset[str]:
    """Texts that may be special tokens of a vocabulary and that the parser has to see."""
    shown = TOOL_PARSERS[tools].markers if tools else frozenset()
    return shown | REASONING_PARSERS[reasoning].markers if reasoning else shown


def make_parser(tools: str | None, reasoning: str | None, context: ParserContext) -> AnswerParser:
    """The parser of one answer, for formats by their names in TOOL_PARSERS and REASONING_PARSERS;
    what is None isn't looked for.
    """
    source, out = Source(), Output(context.new_id)
    return _Parser(source, out, _read_answer(source, out, tools, reasoning, context))


def _read_answer(
    source: Source, out: Output, tools: str | None, reasoning: str | None, context: ParserContext
) -> Steps[None]:
    tool_format = TOOL_PARSERS[tools] if tools else None
    thought_format = REASONING_PARSERS[reasoning] if reasoning else None
    calls, harmony = tool_format is _HARMONY_TOOLS, thought_format is _HARMONY_THOUGHTS
    if calls or harmony:
        yield from read_harmony(source, out, context, thoughts=harmony, calls=calls)
        return
    dropped: tuple[str, ...] = ()
    if thought_format:
        thought = yield from thoughts.read_thought(source, out, thought_format, context)
        if thought and thought_format.wrapper and not context.form:
            dropped = thought_format.wrapper[1:]
    yield from read_content(source, out, context, tool_format, dropped)


class _Parser:
    """An AnswerParser that runs a reader."""

    def __init__(self, source: Source, out: Output, steps: Steps[None]) -> None:
        self._source = source
        self._out = out
        self._steps = steps
        self.passage: Passage | None = None

    @property
    def thoughts(self) -> Sequence[Thought]:
        """The thoughts in what has been pushed so far."""
        return self._out.thoughts

    def push(self, text: str, *, final: bool = False) -> list[Part]:
        """What is certain now."""
        source, out, passage = self._source, self._out, self.passage
        if passage is not None and not final and (step := passage.reading.step(text)):
            shown, reading = step
            self.pass_on(len(text), reading)
            return [msgspec.structs.replace(passage.like, text=shown)] if shown else []
        source.add(text, final)
        next(self._steps, None)
        if final:
            out.finish()
        parts = out.drain()
        self.passage = None if source.flowing is None else out.passage(*source.flowing)
        return parts

    def pass_on(self, num_characters: int, reading: Reading) -> None:
        """So many characters of the answer weren't pushed."""
        assert self.passage is not None
        if reading is not self.passage.reading:
            self.passage = Passage(self.passage.like, reading)
            self._out.pass_on(reading)
        self._source.pass_on(num_characters, reading)
