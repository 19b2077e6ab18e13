"""How many of an answer's tokens belong to thoughts, whatever its tokens and pieces are."""

from __future__ import annotations

import itertools
import random

import pytest

from minisgl.text.parsers import ParserContext, make_parser
from minisgl.text.parts_reader import PartsReader

TAGS, HARMONY = ("hermes", "qwen3"), ("openai", "gpt_oss")
ANALYSIS, NEXT = "<|channel|>analysis<|message|>", "<|start|>assistant"
# Parsers, the prompt's end, and an answer: its second, fourth ... stretches are thoughts.
ANSWERS = [
    (TAGS, "", ("\n", "<think>Ich höre.</think>", "\n\nWell <think>")),
    (TAGS, "", ("", "<think>x</think>", '<tool_call>{"name": "f", "arguments": {}}</tool_call>')),
    (TAGS, "", ("No <think>thought</think> at all",)),
    (TAGS, "<think>\n", ("", "Hm </thin </think>", "\n\nWell")),
    (TAGS, "<think>\n", ("", "It goes on")),
    ((None, "granite"), "", ("", "Here is my thought process: a. Here's my response:", " b")),
    (HARMONY, "", ("", f"{ANALYSIS}a<|end|>", f"{NEXT}<|channel|>final<|message|>b")),
    (
        HARMONY,
        "",
        (
            "",
            f"{ANALYSIS}a",
            "<|channel|>commentary to=functions.f<|message|>{}<|call|>",
            f"{NEXT}{ANALYSIS}b",
        ),
    ),
]


@pytest.mark.parametrize(("formats", "prompt_end", "stretches"), ANSWERS)
def test_tokens_of_thoughts_are_counted(
    formats: tuple[str | None, str], prompt_end: str, stretches: tuple[str, ...]
) -> None:
    text = "".join(stretches)
    places = list(itertools.accumulate(map(len, stretches)))
    thoughts = list(zip(places[::2], places[1::2], strict=False))
    if prompt_end:
        thoughts[0] = (-1, thoughts[0][1])
    if len(stretches) % 2 == 0:  # the last one goes on
        thoughts[-1] = (thoughts[-1][0], len(text) + 1)
    for seed in range(80):
        choose = random.Random(seed)
        lengths: list[int] = []  # of the tokens; some bytes are no character yet
        while sum(lengths) < len(text):
            lengths.append(min(choose.choice((0, 1, 1, 2, 5)), len(text) - sum(lengths)))
        ends = list(itertools.accumulate(lengths))
        expected = sum(
            any(end > begin and end - length < behind for begin, behind in thoughts)
            for length, end in zip(lengths, ends, strict=True)
        )
        parser = make_parser(*formats, ParserContext(prompt_end, lambda: "id"))
        reader = PartsReader(parser, locates=seed % 2 == 1)
        told = shown = 0  # tokens; characters, some of which come later than those
        while shown < len(text):
            begin, first = shown, told
            told = min(told + choose.randint(1, 3), len(ends))
            shown = (
                ends[told - 1] if choose.random() < 0.8 else choose.randint(shown, ends[told - 1])
            )
            if told == len(ends):
                shown = len(text)
            piece, new, final = text[begin:shown], lengths[first:told], shown == len(text)
            passage = reader.passage
            step = passage.reading.step(piece) if passage is not None else None
            if not final and sum(new) == len(piece) and step is not None:
                reader.pass_on(new, step[1])
            else:
                reader.read(piece, new, final=final)
        assert reader.num_reasoning == expected, (lengths, thoughts)
