"""Parsers: what recorded answers say, and that they say the same however they are cut."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Iterable, Sequence
from types import FrameType

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.text.parsers import (
    TOOL_PARSERS,
    ParserContext,
    make_parser,
    marker_tokens,
    reasoning_parser_for,
    tool_parser_for,
)
from minisgl.text.parsers.deepseek import CALL_BEGIN, CALLS_BEGIN
from minisgl.text.parsers.value_types import value_types
from minisgl.text.parts import (
    AnswerParser,
    ArgumentsPart,
    CallPart,
    Part,
    ReasoningPart,
    TextPart,
    Thought,
)

from .answers import ALL, CORPUS, TOOLS, Answer

NAMES = frozenset(tool["function"]["name"] for tool in TOOLS)
FORMATS = list(CORPUS)


def parser(tools: str | None, reasoning: str | None, prompt_end: str = "") -> AnswerParser:
    ids = (f"call_{number}" for number in itertools.count())
    return make_parser(tools, reasoning, ParserContext(prompt_end, ids.__next__, NAMES, TOOLS))


def joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one kind and one call put together."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if not isinstance(part, CallPart) and type(last) is type(part):
            assert not isinstance(last, CallPart)
            assert last is not None
            result[-1] = msgspec.structs.replace(last, text=last.text + part.text)
        else:
            result.append(part)
    return result


def parse(
    pieces: Sequence[str], tools: str | None, reasoning: str | None, prompt_end: str = ""
) -> list[Part]:
    one = parser(tools, reasoning, prompt_end)
    parts = [part for piece in pieces for part in one.push(piece)]
    return joined([*parts, *one.push("", final=True)])


def at_once(
    text: str, tools: str | None, reasoning: str | None, prompt_end: str = ""
) -> list[Part]:
    return joined(parser(tools, reasoning, prompt_end).push(text, final=True))


def said(parts: Iterable[Part], prompt_end: str) -> Answer:
    """What the parts say, in an order that is asserted: a call's pieces follow it."""
    answer = Answer("", prompt_end=prompt_end)
    for part in parts:
        if isinstance(part, TextPart):
            answer.content += part.text
        elif isinstance(part, ReasoningPart):
            answer.reasoning += part.text
        elif isinstance(part, CallPart):
            assert part.index == len(answer.calls)
            assert part.id == f"call_{part.index}"
            answer.calls.append((part.name, ""))
        else:
            assert isinstance(part, ArgumentsPart)
            assert part.index == len(answer.calls) - 1
            name, text = answer.calls[-1]
            answer.calls[-1] = (name, text + part.text)
    return answer


@pytest.mark.parametrize(("tools", "reasoning", "answer"), ALL)
def test_an_answer_says_what_its_model_wrote(
    tools: str | None, reasoning: str | None, answer: Answer
) -> None:
    result = said(at_once(answer.text, tools, reasoning, answer.prompt_end), answer.prompt_end)
    result.text = answer.text
    assert result == answer


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_an_answer_says_the_same_however_it_is_cut(
    tools: str | None, reasoning: str | None
) -> None:
    rng = random.Random(0)
    for answer in CORPUS[tools, reasoning]:
        text, end = answer.text, answer.prompt_end
        whole = at_once(text, tools, reasoning, end)
        assert parse(text, tools, reasoning, end) == whole  # a character at a time
        for cut in range(len(text) + 1):
            assert parse((text[:cut], text[cut:]), tools, reasoning, end) == whole, cut
        for _ in range(10):
            cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(2, 9)))
            pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
            assert parse(pieces, tools, reasoning, end) == whole, pieces


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_an_answer_cut_off_anywhere_says_the_same_in_pieces_and_keeps_its_calls(
    tools: str | None, reasoning: str | None
) -> None:
    for answer in CORPUS[tools, reasoning]:
        text, end = answer.text, answer.prompt_end
        for size in range(len(text)):
            whole = at_once(text[:size], tools, reasoning, end)
            middle = size // 2
            assert parse((text[:middle], text[middle:size]), tools, reasoning, end) == whole, size
            if size % 5 == 0:
                assert parse(text[:size], tools, reasoning, end) == whole, size
            if answer.calls:  # else it may end where it still looks like a call
                calls = said(whole, end).calls
                assert [name for name, _ in calls] == [name for name, _ in answer.calls][
                    : len(calls)
                ]


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_text_of_markers_in_any_order_says_the_same_however_it_is_cut(
    tools: str | None, reasoning: str | None
) -> None:
    shown = sorted(marker_tokens(tools, reasoning))
    pieces = [
        *shown,
        *(marker[:-1] for marker in shown),
        *'{}[]"\\\n;,:=()<> a',
        "weather",
        '"name"',
    ]
    pieces += [
        '{"name": "now", "arguments": {',
        "<parameter=city>",
        "```",
        "[now(",
        "to=functions.f",
    ]

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.lists(st.sampled_from(pieces), max_size=30), st.integers(0, 100))
    def check(words: list[str], seed: int) -> None:
        text = "".join(words)
        whole = at_once(text, tools, reasoning)
        assert parse(words, tools, reasoning) == whole
        assert parse(text, tools, reasoning) == whole
        cut = seed % (len(text) + 1)
        assert parse((text[:cut], text[cut:]), tools, reasoning) == whole

    check()


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_plain_text_passes_at_once_and_unchanged(tools: str | None, reasoning: str | None) -> None:
    one = parser(tools, reasoning, "</think>")
    words = ["Some", " plain", " words", ",", " one", " after", " another", "."]
    parts = [one.push(word) for word in words]
    assert [p[0].text for p in parts if p] == words
    assert not one.push("", final=True)


def test_thoughts_stand_from_mark_to_mark() -> None:
    one = parser("hermes", "qwen3")
    states = []
    for text in ("\n <thi", "nk>", "Hm", ".</", "think>", "Hi"):
        one.push(text)
        states.append([(thought.begin, thought.end) for thought in one.thoughts])
    assert states == [[], [(2, None)], [(2, None)], [(2, None)], [(2, 20)], [(2, 20)]]
    one = parser("hermes", "qwen3", "<think>\n")
    assert one.push("x") == [ReasoningPart("x")]
    assert one.thoughts == [Thought(-1)]


HARMONY = (
    "<|channel|>analysis<|message|>One.<|end|>",
    "<|start|>assistant<|channel|>analysis<|message|>Two.<|end|>",
    "<|start|>assistant<|channel|>final<|message|>Three.",
)


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_harmony_s_thoughts_have_their_headers(size: int) -> None:
    one, text = parser("openai", "gpt_oss"), "".join(HARMONY)
    for at in range(0, len(text), size):
        one.push(text[at : at + size])
    first, second, _ = itertools.accumulate(map(len, HARMONY))
    assert one.thoughts == [Thought(0, first), Thought(first, second)]


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_what_a_passage_takes_is_what_would_be_read(
    tools: str | None, reasoning: str | None
) -> None:
    """Text that isn't pushed where the parser knows what it is leaves nothing else to differ."""
    num_passed = 0
    for answer in CORPUS[tools, reasoning]:
        for seed in range(20):
            rng = random.Random(seed)
            one = parser(tools, reasoning, answer.prompt_end)
            parts: list[Part] = []
            text = answer.text
            while text:
                size = rng.randint(1, 5)
                piece, text = text[:size], text[size:]
                if one.passage is not None and (step := one.passage.reading.step(piece)):
                    shown, reading = step
                    if shown:
                        parts.append(msgspec.structs.replace(one.passage.like, text=shown))
                    one.pass_on(len(piece), reading)
                    num_passed += 1
                else:
                    parts += one.push(piece)
            parts += one.push("", final=True)
            whole = parser(tools, reasoning, answer.prompt_end)
            assert joined(parts) == joined(whole.push(answer.text, final=True))
            assert one.thoughts == whole.thoughts
    assert num_passed


def test_readings_are_those_of_all_answers() -> None:
    """What is kept for one answer's reading serves the next answer."""
    found = []
    for _ in range(2):
        one = parser("hermes", "qwen3")
        for piece in ("Well", ",\n ", " then", "<tool_call>", '{"name": "now", "arguments": {"a'):
            one.push(piece)
            found.append(one.passage.reading if one.passage else None)
    assert found[:5] == found[5:]
    assert len(set(found)) == 4  # without white space, with it, none, in a string


def test_arguments_come_in_pieces_as_they_are_written() -> None:
    one = parser("hermes", None)
    one.push('<tool_call>{"name": "weather", "arguments": ')
    assert one.push('{"city": "Pa') == [
        CallPart(0, "call_0", "weather"),
        ArgumentsPart(0, '{"city": "Pa'),
    ]
    assert one.push('ris"') == [ArgumentsPart(0, 'ris"')]
    one = parser("qwen3_coder", None)
    one.push("<function=weather>\n<parameter=city>\nPa")
    assert one.push("ris") == [ArgumentsPart(0, "ris")]


FLOODS = {
    "angles": "<",
    "braces": "{",
    "brackets": "[",
    "lines of braces": "{\n",
    "backslashes": '{"name": "now", "arguments": {"a": "' + "\\" * 64,
    "openers": "<tool_call>",
    "objects that begin": '<tool_call>{"a": {"b": "',
    "white space": " \n",
    "broken calls": "<tool_call>{x}</tool_call>[TOOL_CALLS][now(",
    "functions": "<function=f><parameter=a></parameter>\n",
    "sections": CALLS_BEGIN + CALL_BEGIN,
    "headers": "<|start|><|channel|>",
    "plain": "word and ",
}


def work(text: str, step: int, tools: str | None, reasoning: str | None) -> int:
    """What an answer in pieces of `step` characters costs: calls of functions, Python's and C's,
    and characters that were there before a piece and are looked at once more with it.
    """
    one = parser(tools, reasoning)
    count = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        for at in range(0, len(text), step):
            count += len(one._source.text) - one._source.at
            one.push(text[at : at + step])
        one.push("", final=True)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(("tools", "reasoning"), FORMATS)
def test_floods_are_read_once(tools: str | None, reasoning: str | None) -> None:
    for name, flood in FLOODS.items():
        text = flood * ((1 << 14) // len(flood))
        whole = at_once(text, tools, reasoning)
        assert (
            parse([text[at : at + 3] for at in range(0, len(text), 3)], tools, reasoning) == whole
        )
        assert work(text, len(text), tools, reasoning) < 100 * len(text), name


@pytest.mark.parametrize("step", [64, 1 << 20])
@pytest.mark.parametrize("flood", ["plain", "objects that begin", "backslashes", "white space"])
@pytest.mark.parametrize("tools", ["hermes", "qwen3_coder", "openai"])
def test_work_grows_as_the_answer_does(tools: str, flood: str, step: int) -> None:
    """Work that grows with the square of the length would be 16 times as much."""
    short, long = (FLOODS[flood] * (size // len(FLOODS[flood])) for size in (1 << 16, 1 << 18))
    assert work(long, step, tools, None) < 6 * work(short, step, tools, None)


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{{ messages }}", None, None),
        ('<tool_call>\n{"name": {%- if enable_thinking %}<think>', "hermes", "qwen3"),
        ('<tool_call>\n{"name": <function-name>', "hermes", None),
        ("<tool_call>\n<function=example><parameter=x>", "qwen3_coder", None),
        ('<|python_tag|>{"name": function name, "parameters": dictionary', "llama3_json", None),
        ("[func_name1(params_name1=params_value1)]", "pythonic", None),
        ("[TOOL_CALLS] [{{ calls }}]", "mistral", None),
        ("[TOOL_CALLS]{{ name }}[ARGS] [THINK]", "mistral_args", "mistral"),
        (f"{CALL_BEGIN}function ```json", "deepseek_v3", None),
        (
            f"{CALL_BEGIN}{{{{ name }}}} <\uff5cAssistant\uff5c></think>",
            "deepseek_v31",
            "deepseek_r1",
        ),
        ("<|channel|>analysis", "openai", "gpt_oss"),
        ("<|tool_call|> Here is my thought process:", "granite", "granite"),
        ("<\uff5cAssistant\uff5c><think>\n", None, "deepseek_r1"),
    ],
)
def test_formats_are_chosen_by_the_chat_template(
    template: str, tools: str | None, reasoning: str | None
) -> None:
    assert (tool_parser_for(template), reasoning_parser_for(template)) == (tools, reasoning)


JSON_CALLS = [
    name for name, one in TOOL_PARSERS.items() if one.syntax and one.syntax.style == "json"
]


@pytest.mark.parametrize("name", JSON_CALLS)
def test_what_a_grammar_forces_is_read_as_calls(name: str) -> None:
    syntax = TOOL_PARSERS[name].syntax
    assert syntax is not None
    text = syntax.begin
    for index, (function, arguments) in enumerate(
        [("weather", '{"city": "Paris"}'), ("now", "{}")]
    ):
        before, schema, after = syntax.call(function, {"type": "object"})
        value = arguments
        if syntax.arguments_key:
            assert schema["required"] == ["name", syntax.arguments_key]
            value = f'{{"name": "{function}", "{syntax.arguments_key}": {arguments}}}'
        text += (syntax.between if index else "") + before + value + after
    result = said(at_once(text + syntax.end, name, None), "")
    assert result.calls == [("weather", '{"city": "Paris"}'), ("now", "{}")]
    assert not result.content


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"$ref": "#/" + "a" * 1022}, {"integer"}),
        ({"$ref": "#/" + "a" * 1023}, {"object"}),  # too long: it leads nowhere
        ({"$ref": "#/b/c"}, {"object"}),
        ({"anyOf": [*[True] * 254, {"type": "array"}]}, {"array"}),
        ({"anyOf": [*[True] * 255, {"type": "array"}]}, {"string"}),
        ({"anyOf": [{"anyOf": [True] * 254}, {"type": "array"}]}, {"array"}),
    ],
)
def test_types_of_values_are_found_within_bounds(schema: object, types: set[str]) -> None:
    root = {"a" * 1022: {"type": "integer"}, "a" * 1023: {"type": "integer"}, "b": 1}
    assert value_types(schema, root) == types


def test_markers_that_may_be_special_tokens_are_told() -> None:
    assert "[TOOL_CALLS]" in marker_tokens("mistral", None)
    assert "<think>" in marker_tokens(None, "qwen3")
    assert "<|channel|>" in marker_tokens("openai", "gpt_oss")
    assert not marker_tokens(None, None)
