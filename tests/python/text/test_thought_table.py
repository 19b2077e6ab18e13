"""What the engine is told of thoughts: its states say what the parser of answers says, whatever
tokens a text is made of.
"""

from __future__ import annotations

import random
import struct

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from minisgl.sampling_params import ThoughtFormat
from minisgl.text.parsers import REASONING_PARSERS, ParserContext, make_parser
from minisgl.text.parts import AnswerParser
from minisgl.text.thought_table import ThoughtTable
from minisgl.tokenizer import Tokenizer
from tests.python.server.byte_tokenizer import byte_alphabet

LIMITED = sorted(name for name, format in REASONING_PARSERS.items() if format.closing)
WORDS = ("a", " the", ".", "<", "</", "ing:", "Here", "'s", " is ", "\n", " \n\n", "\t", "respon")


def make_tokenizer(name: str, *, special: bool) -> tuple[Tokenizer, list[bytes]]:
    """Every byte, pieces of the format's markers with what may stand around them, and with
    `special` the markers themselves and a token that isn't shown. The tokens' bytes beside it.
    """
    markers = REASONING_PARSERS[name].markers
    pieces = {word.encode() for word in WORDS}
    for marker in (one.encode() for one in markers):
        for begin in range(len(marker)):
            for end in (begin + 2, begin + 5, len(marker)):
                pieces |= {marker[begin:end], b"." + marker[begin:end], marker[begin:end] + b"\n"}
    pieces -= {one.encode() for one in markers}
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += sorted(piece for piece in pieces if len(piece) > 1)
    alphabet = byte_alphabet()
    vocabulary = {"".join(alphabet[b] for b in token): i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if special:
        backend.add_special_tokens([*sorted(markers), "<|hidden|>"])
        tokens += [*(marker.encode() for marker in sorted(markers)), b""]
    return Tokenizer(backend), tokens


def random_text(name: str, randomly: random.Random) -> bytes:
    markers = sorted(REASONING_PARSERS[name].markers)
    parts = [randomly.choice(("", "\n", " \n", "x"))]
    if randomly.random() < 0.7:
        parts = [parts[0].strip("x"), randomly.choice(markers)]
    for _ in range(randomly.randrange(12)):
        marker = randomly.choice(markers)
        cut = marker[: randomly.randrange(len(marker))]
        parts.append(randomly.choice((*WORDS, cut, cut, randomly.choice(markers))))
    return "".join(parts).encode()


def cut_into_tokens(text: bytes, tokens: list[bytes], randomly: random.Random) -> list[int]:
    ids = []
    while text:
        fitting = [i for i, token in enumerate(tokens) if text.startswith(token)]
        ids.append(randomly.choice(fitting))
        text = text[len(tokens[ids[-1]]) :]
    return ids


def states_of(thought: ThoughtFormat, ids: list[int]) -> list[int]:
    """The number of the thought behind each token, read as the engine does; -1: none."""
    moves = {(state, token): to for state, token, to in struct.iter_unpack("3i", thought.moves)}
    assert len(moves) * 12 == len(thought.moves)
    state, seen = 0, []
    for token in ids:
        if state >= 0:
            number = thought.thoughts[state]
            first = thought.thoughts.index(number)
            usual = -1 if number < 0 else moves.get((first, token), first)
            state = moves.get((state, token), usual)
        seen.append(thought.thoughts[state] if state >= 0 else -1)
    return seen


def is_thinking(parser: AnswerParser) -> bool:
    return bool(parser.thoughts) and parser.thoughts[-1].end is None


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("name", LIMITED)
def test_states_are_those_of_the_parser(name: str, special: bool) -> None:
    randomly = random.Random(name)
    tokenizer, tokens = make_tokenizer(name, special=special)
    num_thoughts = 0
    begins = list(REASONING_PARSERS[name].ends)
    openers = tuple(begin.encode() for begin in begins)
    for prompt_end in ("<turn>assistant\n", f"<turn>assistant\n{begins[0]}\n"):
        table = ThoughtTable(REASONING_PARSERS[name], prompt_end)
        thought = table.make(tokenizer, [[1]] * len(table.closings))
        for _ in range(150):
            text = random_text(name, randomly)
            if len(begins) > 1 and prompt_end[-2] == ":" and text.lstrip().startswith(openers):
                continue  # a thought of another kind within the one that the prompt begins
            ids = cut_into_tokens(text, tokens, randomly)
            parser = make_parser(None, name, ParserContext(prompt_end, lambda: ""))
            expected = []
            for token_id in ids:
                parser.push(tokens[token_id].decode())
                expected.append(is_thinking(parser))
            found = [number >= 0 for number in states_of(thought, ids)]
            assert found == expected, (prompt_end, [tokens[i] for i in ids])
            num_thoughts += any(expected)
    assert num_thoughts > 60


@pytest.mark.parametrize("name", LIMITED)
def test_what_closes_a_thought_is_its_end_to_the_parser(name: str) -> None:
    for begin in REASONING_PARSERS[name].ends:
        for prompt_end, before in ((begin, ""), ("", begin)):
            table = ThoughtTable(REASONING_PARSERS[name], prompt_end)
            for closing in table.closings:
                parser = make_parser(None, name, ParserContext(prompt_end, lambda: ""))
                parts = parser.push(before + "so much and") + parser.push(closing + "done")
                said = [(type(part).__name__, part.text) for part in parts]  # type: ignore[union-attr]
                if not is_thinking(parser):
                    break
            assert said == [("ReasoningPart", "so much and"), ("TextPart", "done")]
