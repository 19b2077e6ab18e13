"""IncrementalDetokenizer: pieces put together are the decoding of the whole."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer
from tests.python.tokenizer.test_stop_strings import reference
from tests.python.tokenizer.vocabularies import byte_level_bpe

IDS = st.lists(st.lists(st.integers(0, 720), max_size=6), max_size=12)  # past the vocabulary too
STOPS = ["the", " t", "\n\n", "\ufffd", "e", "<|im_end|>", "ein", "é"]


def run(detokenizer: IncrementalDetokenizer, pushes: list[list[int]]) -> str:
    text = ""
    for token_ids in pushes:
        text += detokenizer.push(token_ids)
    return text + detokenizer.finish()


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
    assert text == tokenizer.decode(sum(pushes, []), skip_special_tokens=skip)


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
    expected, match = reference(byte_level.decode(sum(pushes, [])), stops)
    if match is not None and include:
        expected += match
    assert text == expected
    assert detokenizer.stopped == (match is not None)


def test_counts_the_tokens_up_to_the_stop(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("one\ntwo END three")
    detokenizer = IncrementalDetokenizer(byte_level, DetokenizerOptions(stop=["END"]))
    assert detokenizer.push(ids) == "one\ntwo "
    assert detokenizer.stopped
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
    plain = IncrementalDetokenizer(byte_level, DetokenizerOptions())
    ids = sum(pushes, [])
    early = plain.push(ids[:min_tokens])
    late = plain.push(ids[min_tokens:]) + plain.finish()
    expected, match = reference(late, stops)
    if match is not None and include:
        expected += match
    assert text == early + expected
    assert detokenizer.stopped == (match is not None)


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
    assert detokenizer.finish() == "\ufffd"
