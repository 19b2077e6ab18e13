"""A small model folder and an engine that only pretends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.python.offline.fake_native import FakeNative
from tests.python.tokenizer.vocabularies import byte_level_bpe

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "small"
    folder.mkdir()
    byte_level_bpe().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 0}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 2]}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> FakeNative:
    """The engine repeats the prompt until told otherwise."""
    module = FakeNative(lambda request: request["prompt"])
    monkeypatch.setitem(sys.modules, "minisgl._native", module)
    return module
