"""IncrementalDetokenizer: pieces put together are the decoding of the whole."""

from __future__ import annotations

import codecs
import itertools
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer
from tests.python.tokenizer.test_stop_strings import reference_with_hidden
from tests.python.tokenizer.vocabularies import byte_level_bpe

IDS = st.lists(st.lists(st.integers(0, 720), max_size=6), max_size=12)  # past the vocabulary too
STOPS = ["the", " t", "\n\n", "\ufffd", "e", "<|im_end|>", "ein", "é"]


def run(detokenizer: IncrementalDetokenizer, pushes: list[list[int]]) -> str:
    text = ""
    for token_ids in pushes:
        text += detokenizer.push(token_ids)
    return text + detokenizer.finish()


def pieces_of(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> list[tuple[str, bool]]:
    """The text of each token, and whether it is shown: a character counts for its last token, and
    not at all where it is incomplete at the end.
    """
    table = tokenizer.byte_table(skip)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    strip = tokenizer.strips_first_space
    pieces = []
    for token_id in ids:
        data = table[token_id]
        if not data:
            pieces.append((tokenizer.token_bytes(token_id).decode("utf-8", "replace"), False))
            continue
        pieces.append((decoder.decode(data.removeprefix(b" ") if strip else data), True))
        strip = False
    return pieces


def whole(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> str:
    return "".join(text for text, shown in pieces_of(tokenizer, ids, skip=skip) if shown)


def special_texts(tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.token_bytes(i).decode() for i in tokenizer.special_token_ids]


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_style"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes=IDS, skip=st.booleans())
def test_equals_decode(
    request: pytest.FixtureRequest, kind: str, pushes: list[list[int]], skip: bool
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    text = run(
        IncrementalDetokenizer(tokenizer, DetokenizerOptions(skip_special_tokens=skip)), pushes
    )
    ids = sum(pushes, [])
    assert text == whole(tokenizer, ids, skip=skip)
    rest = tokenizer.decode(ids, skip_special_tokens=skip).removeprefix(text)
    assert set(rest) <= {"\ufffd"}  # a character that never ended


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=st.lists(st.integers(0, 449), max_size=40), skip=st.booleans())
def test_decode_equals_the_library(byte_level: Tokenizer, ids: list[int], skip: bool) -> None:
    expected = byte_level_library.decode(ids, skip_special_tokens=skip)
    assert byte_level.decode(ids, skip_special_tokens=skip) == expected


byte_level_library = byte_level_bpe()


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_style"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=60))
def test_text_survives_the_round(request: pytest.FixtureRequest, kind: str, text: str) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if "\u2581" in text and kind == "sentencepiece_style":
        text = text.replace("\u2581", " ")  # SentencePiece can't tell it from a space
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    detokenizer = IncrementalDetokenizer(tokenizer, DetokenizerOptions(skip_special_tokens=False))
    shown = ""
    for token_id in ids:
        shown += detokenizer.push([token_id])
        assert text.startswith(shown)  # no half character was ever shown
    assert shown + detokenizer.finish() == text


@pytest.mark.parametrize("include", [False, True])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes=IDS, stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))
def test_stop_strings(
    byte_level: Tokenizer, include: bool, pushes: list[list[int]], stops: list[str]
) -> None:
    detokenizer = IncrementalDetokenizer(
        byte_level, DetokenizerOptions(stop=stops, include_stop=include)
    )
    text = run(detokenizer, pushes)
    pieces = pieces_of(byte_level, sum(pushes, []))
    expected, match = reference_with_hidden(pieces, stops, special_texts(byte_level))
    if match is not None and include:
        expected += match
    assert text == expected
    assert detokenizer.match == match


def test_counts_the_tokens_up_to_the_stop(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("one\ntwo END three")
    detokenizer = IncrementalDetokenizer(byte_level, DetokenizerOptions(stop=["END"]))
    assert detokenizer.push(ids) == "one\ntwo "
    assert detokenizer.match == "END"
    kept = byte_level.decode(ids[: detokenizer.num_tokens])
    assert "END" in kept
    assert "END" not in byte_level.decode(ids[: detokenizer.num_tokens - 1])
    assert detokenizer.push(ids) == ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("include", [False, True])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pushes=IDS,
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
    min_tokens=st.integers(0, 20),
)
def test_stop_strings_count_behind_min_tokens(
    byte_level: Tokenizer, include: bool, pushes: list[list[int]], stops: list[str], min_tokens: int
) -> None:
    detokenizer = IncrementalDetokenizer(
        byte_level, DetokenizerOptions(stop=stops, min_tokens=min_tokens, include_stop=include)
    )
    text = run(detokenizer, pushes)
    pieces = pieces_of(byte_level, sum(pushes, []))
    early = "".join(text for text, shown in pieces[:min_tokens] if shown)
    expected, match = reference_with_hidden(pieces[min_tokens:], stops, special_texts(byte_level))
    if match is not None and include:
        expected += match
    assert text == early + expected
    assert detokenizer.match == match


def test_first_space_belongs_to_text_behind_a_prompt(sentencepiece_style: Tokenizer) -> None:
    ids = sentencepiece_style.encode("the dog", add_special_tokens=False)
    assert (
        run(IncrementalDetokenizer(sentencepiece_style, DetokenizerOptions()), [ids]) == "the dog"
    )
    behind = IncrementalDetokenizer(sentencepiece_style, DetokenizerOptions(continues_prompt=True))
    assert run(behind, [ids]) == " the dog"


def test_a_character_that_never_ends(byte_level: Tokenizer) -> None:
    lead = byte_level.encode("😀"[:1])[:1]  # the first byte or more of four
    assert byte_level.token_bytes(lead[0])[0] == 0xF0
    detokenizer = IncrementalDetokenizer(byte_level, DetokenizerOptions())
    assert detokenizer.push(lead) == ""
    assert detokenizer.push(byte_level.encode("a")) == "\ufffda"
    assert detokenizer.push(lead) == ""
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("stop", [[], ["x"]])
def test_a_replacement_character_that_was_said_stays(
    byte_level: Tokenizer, stop: list[str]
) -> None:
    detokenizer = IncrementalDetokenizer(byte_level, DetokenizerOptions(stop=stop))
    assert run(detokenizer, [byte_level.encode("a\ufffd")]) == "a\ufffd"


@pytest.mark.parametrize("skip", [False, True])
def test_the_token_that_ended_a_stream_may_complete_a_stop_string(
    byte_level: Tokenizer, skip: bool
) -> None:
    (end,) = byte_level.encode("<|im_end|>")
    ids = byte_level.encode("Yes\n")
    options = DetokenizerOptions(stop=["\n<|im_end|>"], skip_special_tokens=skip)
    detokenizer = IncrementalDetokenizer(byte_level, options)
    assert detokenizer.push(ids) == "Yes"
    assert detokenizer.finish(end) == ""
    assert (detokenizer.match, detokenizer.num_tokens) == ("\n<|im_end|>", len(ids) + 1)
    detokenizer = IncrementalDetokenizer(byte_level, options)
    assert detokenizer.push(byte_level.encode("Yes")) == "Yes"
    assert detokenizer.finish(end) == ""
    assert detokenizer.match is None


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece_style"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pushes=IDS)
def test_whole_texts_are_what_is_shown(
    request: pytest.FixtureRequest, kind: str, pushes: list[list[int]]
) -> None:
    """Wherever nothing is held, the next token's text may be looked up, as JSON has it."""
    detokenizer = IncrementalDetokenizer(
        request.getfixturevalue(kind), DetokenizerOptions(stop=["the", "é"])
    )
    texts, begins = detokenizer.whole_texts, detokenizer.stop_begins
    assert texts is not None
    for token_id in itertools.chain.from_iterable(pushes):
        whole = texts[token_id] if detokenizer.holds_nothing else None
        shown = detokenizer.push([token_id])
        if whole is not None and not any(begin in whole for begin in begins):
            assert json.loads(b'"%b"' % whole) == shown
            assert detokenizer.holds_nothing
        if detokenizer.match is not None:
            assert not detokenizer.holds_nothing
