"""Tokenizers out of .gguf files, against transformers, sentencepiece and hand-written splits."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from minisgl.model_files.files import ModelError
from minisgl.tokenizer import load_tokenizer
from minisgl.tokenizer.fill_in_middle import FillInMiddle
from minisgl.tokenizer.gguf_tokenizer import merges_from_scores
from minisgl.tokenizer.pre_tokenizers import PRE_TOKENIZATIONS, pre_tokenization
from tests.python.tokenizer.vocabularies import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    byte_level_bpe,
    byte_level_fields,
    sentencepiece_fields,
    sentencepiece_model,
    write_gguf,
)

TEXTS = [
    "Hello, world!", "  leading and trailing  ", "a b  c   d", "tabs\t\tand\nlines\n\n\n  x",
    "\n", " ", "", "12345 67 8.90\n 1", "é ñ ü café cafe\u0301", "中文字符 日本語 한국어",
    "😀👨‍👩‍👧🇩🇪", "I'm you're we'll DON'T", "def f(x):\n    return x + 1\n",
    "\u200b\u00a0x\u3000", "\x00\x01\x7f", "\ufffd", "a" * 500, "١٢٣ Ⅷ ½",
    "<|im_start|>user\nhi<|im_end|>\n", "x<|endoftext|> <|im_end|>y", "<repo_name>a<file_sep>b",
]  # fmt: skip


def random_texts(count: int) -> list[str]:
    source = random.Random(0)

    def character() -> str:
        kind = source.randrange(5)
        if kind == 0:
            return source.choice(" \n\t'.0123456789")
        if kind == 1:
            return chr(
                source.choice([source.randrange(0xD800), source.randrange(0xE000, 0x110000)])
            )
        return chr(source.randrange(33, 127))

    return ["".join(character() for _ in range(source.randrange(40))) for _ in range(count)]


def test_default_model_equals_transformers(default_gguf: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(
        str(default_gguf.parent), gguf_file=default_gguf.name
    )
    # The model's own tokenizer.json cuts off single digits first; transformers' conversion of the
    # GGUF file forgets it, which shows in spaces before digits.
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), theirs.backend_tokenizer.pre_tokenizer]
    )
    ours = load_tokenizer(str(default_gguf))
    for text in TEXTS + random_texts(500):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        for skip in (False, True):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            )
    source = random.Random(1)
    for _ in range(300):
        ids = [source.randrange(ours.vocab_size) for _ in range(source.randrange(20))]
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert ours.render_chat(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert ours.vocab_size == 49152
    assert ours.eos_token_ids == [0, 2, 4]  # <|endoftext|>, <|im_end|>, <reponame>


def test_byte_level_equals_the_tokenizer_it_was_written_from(tmp_path: Path) -> None:
    theirs = byte_level_bpe()
    ours = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", byte_level_fields())))
    for text in TEXTS + random_texts(200):
        assert ours.encode(text) == theirs.encode(text).ids
    assert ours.eos_token_ids == [0, 2]  # <|im_end|> ends a turn, whatever the file calls its end


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_equals_sentencepiece(tmp_path: Path, prefix: bool) -> None:
    pytest.importorskip("sentencepiece")
    processor = sentencepiece_model(tmp_path)
    fields = sentencepiece_fields(processor, ggml__add_space_prefix=prefix)
    ours = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))
    texts = [text for text in TEXTS + random_texts(300) if "\x00" not in text and text]
    for text in texts:
        ids = ours.encode(text)
        assert ids[0] == processor.bos_id()
        if prefix:
            assert ids[1:] == processor.encode(text), text
        else:
            pieces = processor.encode("a" + text)  # the prefix goes to the letter
            if pieces[0] == processor.piece_to_id("\u2581a"):
                assert ids[1:] == pieces[1:], text
        assert ours.decode(ids) == text.replace("\u2581", " ")
    marked = ours.encode("the<|user|>the", add_special_tokens=False)
    assert processor.piece_to_id("<|user|>") in marked
    assert ours.decode(marked) == "the<|user|>" + (" the" if prefix else "the")
    assert processor.eos_id() in ours.encode("the</s>")
    assert ours.eos_token_ids == [processor.eos_id()]


# Runs of spaces in the order of their ids in Mistral 7B and Llama 2, which all have one score.
RUNS = [2, 4, 8, 5, 16, 6, 12, 13, 10, 14, 3, 9, 7, 11, 1]


def test_merges_of_one_score_go_leftmost() -> None:
    """Against SentencePiece's rule, written out: the best pair, and the leftmost of the best."""
    tokens = ["\u2581" * length for length in RUNS] + ["x"]
    ids = {token: index for index, token in enumerate(tokens)}
    scores = [-1e9] * len(RUNS) + [-28000.0]
    backend = Backend(models.BPE(ids, merges_from_scores(ids, scores)))
    for length in range(1, 100):
        parts = list("\u2581" * length + "x")
        while pairs := [
            (-scores[ids[left + right]], at)
            for at, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in ids
        ]:
            at = min(pairs)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        assert backend.encode("\u2581" * length + "x").tokens == parts


# Text and its words, which "|" parts.
SPLITS = {
    "gpt-2": ("I'LL it's 1234 a\n\n  b!?\n", "I|'|LL| it|'s| 1234| a|\n\n | b|!?|\n"),
    "smollm": ("it's 123\n 4", "it|'s| |1|2|3|\n |4"),
    "llama-bpe": (
        "I'LL it's 1234567 a\n\n  b!?\nc (x)",
        "I|'LL| it|'s| |123|456|7| a|\n\n| | b|!?\n|c| (|x|)",
    ),
    "qwen2": ("I'LL 123\tx\r\n  y", "I|'LL| |1|2|3|\tx|\r\n| | y"),
    "deepseek-v3": (
        "it's (x) 12345 中文abc Größe\n\n  b",
        "it|'s| (|x|)| |123|45| |中文|abc| Größe|\n\n| | b",
    ),
    "gpt-4o": ("HelloWorld's HTTPServer 1234/\nb", "Hello|World's| HTTPServer| |123|4|/\n|b"),
    "qwen35": ("नमस्ते 12 a\n", "नमस्ते| |1|2| a|\n"),
    "seed-coder": ("a!\n\nb", "a|!|\n\n|b"),
    "deepseek-coder": ("x = f(12)\n\ny 中文", "x| =| f|(|1|2|)|\n|\n|y| |中文"),
    "falcon": ("a==b 12345 c`d", "a|==|b| |123|45| c|`|d"),
    "tekken": ("HelloWorld HTTPServer's 12 a/\nb", "Hello|World| HTTPServer|'s| |1|2| a|/\n|b"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_words_are_cut_as_the_vocabulary_was_trained(name: str) -> None:
    text, words = SPLITS[name]
    assert words_of(pre_tokenization(name).build(add_prefix_space=False), text) == words


def words_of(cutter: PreTokenizer, text: str) -> str:
    return "|".join(text[begin:end] for _, (begin, end) in cutter.pre_tokenize_str(text))


@pytest.mark.parametrize(
    ("names", "like"),
    [
        (["llama3", "llama-v3", "falcon3", "pixtral", "lfm2"], "llama-bpe"),
        (["megrez", "deepseek-r1-qwen", "stablelm2", "grok-2"], "qwen2"),
        (["starcoder", "refact", "command-r", "codeshell", "minerva-7b"], "smollm"),
        (["phi-2", "mpt", "olmo", "jais", "exaone4", "trillion"], "gpt-2"),
        (["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], "llama-bpe"),
        (["llama4", "kanana2"], "gpt-4o"),
        (["hunyuan-dense"], "deepseek-v3"),
    ],
)
def test_names_of_one_pattern(names: list[str], like: str) -> None:
    for name in names:
        assert pre_tokenization(name).cuts == pre_tokenization(like).cuts


# llama.cpp's default pattern cuts off punctuation and some signs first, then words as GPT-2's does,
# then numbers in threes.
DEFAULT_TEXT, DEFAULT_WORDS = "it's 12345, a<=b\n\nc €5", "it|'|s| |123|45|,| a|<=|b|\n|\n|c| €|5"


@pytest.mark.parametrize(
    ("fields", "like", "warning"),
    [
        ({}, None, "names no pre-tokenizer .* by llama.cpp's default"),
        ({"ggml__pre": "default"}, None, "names no pre-tokenizer .* by llama.cpp's default"),
        ({"ggml__pre": "who-knows"}, None, "pre-tokenizer 'who-knows' is not known.* default"),
        ({"architecture": "qwen2"}, "qwen2", "as 'qwen2' does, by the architecture"),
        ({"architecture": "qwen3", "ggml__pre": "default"}, "qwen2", "as 'qwen2' does"),
        ({"architecture": "qwen2", "ggml__pre": "who-knows"}, None, "llama.cpp's default"),
        ({"ggml__pre": "qwen2"}, "qwen2", None),
    ],
)
def test_no_or_unknown_pre_tokenizer(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    fields: dict[str, Any],
    like: str | None,
    warning: str | None,
) -> None:
    fields = {"ggml__pre": None, **fields}
    architecture = fields.pop("architecture", "llama")
    path = tmp_path / "model.gguf"
    write_gguf(path, byte_level_fields(**fields), architecture=architecture)
    tokenizer = load_tokenizer(str(path))
    assert len(caplog.records) == (warning is not None)
    if warning is not None:
        assert re.search(warning, caplog.text)
    cutter = tokenizer._backend.pre_tokenizer
    if like is None:
        assert words_of(cutter, DEFAULT_TEXT) == DEFAULT_WORDS
    else:
        build = pre_tokenization(like).build(add_prefix_space=False)
        assert words_of(cutter, DEFAULT_TEXT) == words_of(build, DEFAULT_TEXT) != DEFAULT_WORDS


def test_a_llama_file_without_name_and_with_the_size_of_llama_3() -> None:
    named = pre_tokenization("llama-bpe")
    assert pre_tokenization("", architecture="llama", num_tokens=128256) == named
    assert pre_tokenization("", architecture="llama", num_tokens=32000) != named


@pytest.mark.parametrize("name", PRE_TOKENIZATIONS)
def test_no_text_is_lost_between_words(name: str) -> None:
    cutter = pre_tokenization(name).build(add_prefix_space=False)
    for text in TEXTS + random_texts(50):
        spans = [span for _, span in cutter.pre_tokenize_str(text)]
        assert "".join(text[begin:end] for begin, end in dict.fromkeys(spans)) == text


@pytest.mark.parametrize("pre", ["qwen2", "command-r"])
def test_composed_text_where_the_family_needs_it(tmp_path: Path, pre: str) -> None:
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(ggml__pre=pre))
    assert load_tokenizer(str(path)).decode(load_tokenizer(str(path)).encode("e\u0301")) == "é"


def test_bos_and_eos_are_added_where_the_file_says_so(tmp_path: Path) -> None:
    fields = byte_level_fields(
        ggml__add_bos_token=True, ggml__add_eos_token=True, ggml__bos_token_id=1
    )
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "a.gguf", fields)))
    ids = tokenizer.encode("hi")
    assert (ids[0], ids[-1]) == (1, 0)
    assert tokenizer.encode("hi", add_special_tokens=False) == ids[1:-1]
    # The llama-bpe family begins with BOS unless told otherwise.
    fields = byte_level_fields(ggml__pre="llama-bpe")
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "b.gguf", fields)))
    assert tokenizer.encode("hi")[0] == 0


def test_token_types(tmp_path: Path) -> None:
    fields = byte_level_fields()
    types = fields["ggml.token_type"]
    fields["ggml.tokens"] += ["<|spoken|>"]
    types[1] = USER_DEFINED
    types.append(NORMAL)
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))
    ids = tokenizer.encode("<|endoftext|><|im_start|><|spoken|>")
    assert ids[:2] == [0, 1]
    assert len(types) - 1 not in ids  # a normal token that no merge makes
    assert tokenizer.decode(ids) == "<|im_start|><|spoken|>"
    assert tokenizer.special_token_ids == {0, 2}
    assert {BYTE, CONTROL, UNKNOWN} == {6, 3, 2}


@pytest.mark.parametrize(
    "names", [("fim_pre", "fim_suf", "fim_mid"), ("prefix", "suffix", "middle")]
)
@pytest.mark.parametrize("kind", [CONTROL, NORMAL])
def test_fill_in_the_middle_tokens_that_the_file_names(
    tmp_path: Path, names: tuple[str, ...], kind: int
) -> None:
    fields = byte_level_fields()
    first = len(fields["ggml.tokens"])
    fields["ggml.tokens"] += ["<before>", "<behind>", "<between>"]
    fields["ggml.token_type"] += [kind] * 3
    fields |= {f"ggml.{name}_token_id": first + k for k, name in enumerate(names)}
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))
    assert tokenizer.fill_in_middle is not None
    ids = tokenizer.encode(tokenizer.fill_in_middle.prompt("a", "b"), add_special_tokens=False)
    a, b = tokenizer.encode("a") + tokenizer.encode("b")
    assert ids == [first, a, first + 1, b, first + 2]


def test_fill_in_the_middle_tokens_by_their_names(tmp_path: Path) -> None:
    fields = byte_level_fields()
    fields["ggml.tokens"] += ["<fim-prefix>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    fields["ggml.token_type"] += [NORMAL] * 4
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "a.gguf", fields)))
    assert tokenizer.fill_in_middle == FillInMiddle("<fim_prefix>", "<fim_suffix>", "<fim_middle>")
    fields["ggml.tokens"].pop()
    fields["ggml.token_type"].pop()
    tokenizer = load_tokenizer(str(write_gguf(tmp_path / "b.gguf", fields)))
    assert tokenizer.fill_in_middle is None


def test_chat_template_of_the_file_and_of_the_user(tmp_path: Path) -> None:
    fields = byte_level_fields(chat_template="{{ bos_token }}{{ messages[0].content }}")
    path = str(write_gguf(tmp_path / "model.gguf", fields))
    messages = [{"role": "user", "content": "hi"}]
    assert load_tokenizer(path).render_chat(messages) == "<|endoftext|>hi"
    assert load_tokenizer(path, chat_template="mine").render_chat(messages) == "mine"
    fields["chat_template.tool_use"] = "tools"
    path = str(write_gguf(tmp_path / "tools.gguf", fields))
    assert load_tokenizer(path).render_chat(messages) == "<|endoftext|>hi"
    assert load_tokenizer(path).render_chat(messages, tools=[{}]) == "tools"
    assert load_tokenizer(path, chat_template="mine").render_chat(messages, tools=[{}]) == "mine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml__model": "rwkv"}, "tokenizer model 'rwkv' is not supported"),
        ({"ggml__model": None}, "tokenizer model '' is not supported"),
        ({"ggml__tokens": None}, "has no vocabulary"),
        ({"ggml__tokens": ["a", "a"]}, "has a token twice"),
        ({"ggml__tokens": "abc"}, "tokens must be a list of str"),
        ({"ggml__tokens": [1, 2]}, "tokens must be a list of str"),
        ({"ggml__token_type": [1]}, "450 tokens but 1 token types"),
        ({"ggml__eos_token_id": "x"}, "eos_token_id must be of type int"),
        ({"ggml__merges": ["zz yy"]}, "merges don't fit together"),
        ({"ggml__model": "llama"}, "450 tokens but 0 scores"),
    ],
)
def test_a_file_that_contradicts_itself(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_gguf(tmp_path / "model.gguf", byte_level_fields(**changes))
    with pytest.raises(ModelError, match=message) as error:
        load_tokenizer(str(path))
    assert str(path) in str(error.value)
