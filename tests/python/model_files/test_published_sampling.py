"""What a model publishes for the sampling of its requests: as a folder and as a GGUF file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import gguf
import pytest

from minisgl.model_files.files import ModelError
from minisgl.model_files.published_sampling import published_sampling

QWEN = {
    "bos_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "max_new_tokens": 2048,
    "repetition_penalty": 1.1,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
}


def folder_with(folder: Path, content: Any) -> str:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return str(folder)


def test_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert published_sampling(str(tmp_path)) == {}
    with caplog.at_level(logging.INFO):
        published = published_sampling(folder_with(tmp_path, QWEN))
    assert published == {
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.1,
    }
    assert [record.getMessage() for record in caplog.records] == [
        "defaults of requests' sampling, by generation_config.json: temperature 0.7, top_p 0.8, "
        "top_k 20, repetition_penalty 1.1 (--generation-config none leaves them out)"
    ]


@pytest.mark.parametrize(
    ("content", "right", "warnings"),
    [
        ({"min_p": 0.05, "temperature": None}, {"min_p": 0.05}, []),
        ({"top_k": 20.0, "temperature": 1}, {"top_k": 20, "temperature": 1}, []),
        ({"temperature": 0.0, "top_k": 0}, {"temperature": 0.0, "top_k": 0}, []),
        ({"temperature": "hot", "top_p": 0.9}, {"top_p": 0.9}, ["temperature must be a number"]),
        ({"temperature": float("nan")}, {}, ["temperature must be between"]),
        (
            {"top_p": 1.5, "top_k": 2.5},
            {},
            ["top_p must be between 0 and 1", "top_k must be an integer"],
        ),
        ({"repetition_penalty": True, "top_k": 5}, {"top_k": 5}, ["repetition_penalty must be"]),
        ({"eos_token_id": 2, "typical_p": 0.9}, {}, []),
    ],
)
def test_odd_values(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: dict[str, Any],
    right: dict[str, Any],
    warnings: list[str],
) -> None:
    published = published_sampling(folder_with(tmp_path, content))
    assert published == right
    assert {name: type(value) for name, value in published.items()} == {
        name: type(value) for name, value in right.items()
    }
    assert len(caplog.records) == len(warnings)
    for warning in warnings:
        assert warning in caplog.text


def test_a_damaged_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must hold a JSON object"):
        published_sampling(folder_with(tmp_path, []))


def test_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 20)
    writer.add_float32("general.sampling.top_p", 0.75)
    writer.add_float32("general.sampling.min_p", 0.125)
    writer.add_float32("general.sampling.penalty_repeat", 1.25)
    writer.add_int32("general.sampling.mirostat", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert published_sampling(str(path)) == {
        "temperature": 0.5,
        "top_k": 20,
        "top_p": 0.75,
        "min_p": 0.125,
        "repetition_penalty": 1.25,
    }


def test_the_default_model(default_gguf: Path) -> None:
    assert published_sampling(str(default_gguf)) == {}
