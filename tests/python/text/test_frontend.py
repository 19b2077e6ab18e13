"""TextFrontend, the same in both topologies: in this process and in tokenizer processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import tokenizers
from tokenizers import decoders, models, normalizers

from minisgl.model_files.files import ModelError
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import ChatTemplateError, DetokenizerOptions, Tokenizer, load_tokenizer


@pytest_asyncio.fixture(params=[0, 2])
async def text(model: str, request: pytest.FixtureRequest) -> AsyncIterator[TextFrontend]:
    frontend = await TextFrontend.start(
        model, chat_template=str(Path(model, "template.jinja")), num_tokenizer=request.param
    )
    yield frontend
    await frontend.close()


async def test_it_encodes_what_the_tokenizer_does(text: TextFrontend, model: str) -> None:
    tokenizer = load_tokenizer(model)
    texts = ["", "hello", "häh? 😀", "long " * 5000]
    encoded = await asyncio.gather(*map(text.encode, texts))
    assert encoded == [tokenizer.encode(one) for one in texts]


async def test_words_are_encoded_with_and_without_a_space_before(text: TextFrontend) -> None:
    tokenizer = text.tokenizer
    texts = ("hello", " hello", "ä b", " ä b")
    expected = [tokenizer.encode(one, add_special_tokens=False) for one in texts]
    assert await text.encode_words(["hello", "ä b", "hello"]) == expected
    assert await text.encode_words([]) == []


async def test_words_of_a_vocabulary_that_puts_a_space_before_a_text() -> None:
    names = ["<unk>", "▁", "f", "o", "▁f", "▁fo", "▁foo", "fo", "foo"]
    merges = [("▁", "f"), ("f", "o"), ("▁f", "o"), ("fo", "o"), ("▁fo", "o")]
    vocab = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    text = TextFrontend(Tokenizer(backend), [], None)
    # "foo" also where a line or a quotation begins, and not only behind a space.
    assert await text.encode_words(["foo"]) == [[vocab["foo"]], [vocab["▁foo"]]]
    await text.close()


async def test_it_renders_conversations(text: TextFrontend) -> None:
    for content in ("hi", "x" * 20_000):
        ids = (await text.encode_chat([{"role": "user", "content": content}])).ids
        assert text.tokenizer.decode(ids) == f"<user>{content}"


async def test_a_bad_text_is_the_callers_error(text: TextFrontend) -> None:
    with pytest.raises(ValueError, match="lone surrogate"):
        await text.encode("\ud800")
    with pytest.raises(ValueError, match="surrogate"):
        await text.encode_chat([{"role": "user", "content": "\ud800"}])
    assert await text.encode("a") == text.tokenizer.encode("a")


async def test_a_missing_template_is_the_callers_error(model: str) -> None:
    for num_tokenizer in (0, 1):
        frontend = await TextFrontend.start(model, num_tokenizer=num_tokenizer)
        with pytest.raises(ChatTemplateError):
            await frontend.encode_chat([{"role": "user", "content": "hi"}])
        await frontend.close()


async def test_it_detokenizes_streams_that_are_interleaved(text: TextFrontend) -> None:
    texts = ["first", "zweiter Text: ä", "😀😀"]
    streams = [text.detokenizer(DetokenizerOptions()) for _ in texts]
    ids = [text.tokenizer.encode(one) for one in texts]
    parts: list[list[str]] = [[] for _ in texts]
    for position in range(max(map(len, ids))):
        for number, stream in enumerate(streams):
            parts[number].append(await stream.push(ids[number][position : position + 1]))
    for number, stream in enumerate(streams):
        parts[number].append(await stream.finish())
    assert ["".join(part) for part in parts] == texts


async def test_stop_strings_end_a_stream(text: TextFrontend) -> None:
    stream = text.detokenizer(DetokenizerOptions(stop=["END"]))
    shown = await stream.push(text.tokenizer.encode("one EN"))
    shown += await stream.push(text.tokenizer.encode("D two"), final=True)
    assert shown == "one "
    assert (stream.match, stream.num_tokens) == ("END", 7)


async def test_a_special_token_ends_a_stream_or_completes_a_stop_string(text: TextFrontend) -> None:
    *ids, end = text.tokenizer.encode("one\n<end>")
    options = DetokenizerOptions(stop=["\n<end>"])
    said = text.detokenizer(options)
    assert await said.push([*ids, end, *ids], final=True) == "one"
    assert (said.match, said.num_tokens) == ("\n<end>", 5)
    ended = text.detokenizer(options)
    assert await ended.push(ids, final=True, stop_token=end) == "one"
    assert (ended.match, ended.num_tokens) == ("\n<end>", 5)


async def test_a_character_that_the_prompt_begins(text: TextFrontend) -> None:
    stream = text.detokenizer(DetokenizerOptions(begun=b"\xc3"))
    assert await stream.push(text.tokenizer.encode("äa")[1:], final=True) == "äa"


async def test_stop_strings_before_min_tokens_end_nothing(text: TextFrontend) -> None:
    early = text.tokenizer.encode("a END b")
    stream = text.detokenizer(DetokenizerOptions(stop=["END"], min_tokens=len(early)))
    shown = await stream.push([*early, *text.tokenizer.encode(" END c")], final=True)
    assert shown == "a END b "
    assert stream.match is not None


async def test_a_model_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    for num_tokenizer in (0, 1):
        with pytest.raises(ModelError):
            await TextFrontend.start(str(tmp_path), num_tokenizer=num_tokenizer)


async def test_streams_that_end_early_are_forgotten_by_the_worker(model: str) -> None:
    text = await TextFrontend.start(model, num_tokenizer=1)
    stream = text.detokenizer(DetokenizerOptions())
    await stream.push([1])
    identity = stream._opening.id  # type: ignore[attr-defined]
    del stream
    from minisgl.text.messages import PushTokens

    assert text._detokenizer is not None
    with pytest.raises(ValueError, match="no such stream"):
        await text._detokenizer.ask(identity, PushTokens(identity, [1]))
    await text.close()
