"""LoRA adapters in batches, against models with merged weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from minisgl import LLM, SamplingParams
from minisgl.engine.adapters import AdapterError
from tests.python.models.lora_adapters import save_adapter
from tests.python.models.tiny_models import save_random_model, tiny_config
from tests.python.server.byte_tokenizer import VOCAB_SIZE, make_backend

PROMPTS = [list(range(3, 3 + 7 * i)) for i in (1, 4, 9, 2)]
NAMES = ["a", None, "b", "c"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with three adapters, and the models with these merged."""
    folder = tmp_path_factory.mktemp("lora")
    save_random_model(tiny_config("qwen3", vocab_size=VOCAB_SIZE), folder / "model")
    make_backend().save(str(folder / "model" / "tokenizer.json"))
    for seed, name in enumerate("abc"):
        only = "" if name != "c" else "mlp"
        save_adapter(
            folder / "model",
            folder / name,
            seed=seed,
            rank=4 * (seed + 1),
            only=only,
            merged=folder / f"merged-{name}",
        )
    return folder


def greedy(llm: LLM, name: str | None = None) -> list[list[int]]:
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    results = llm.generate(PROMPTS, params, lora=name, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str | None, list[list[int]]]:
    """What the models with merged weights say."""
    said: dict[str | None, list[list[int]]] = {}
    for name in (None, "a", "b", "c"):
        with LLM(str(folder / ("model" if name is None else f"merged-{name}"))) as llm:
            said[name] = greedy(llm)
    assert len({str(answer) for answer in said.values()}) == 4
    return said


@pytest.mark.parametrize("tp", [1, 2])
def test_adapters_say_what_merged_models_do(
    tp: int, folder: Path, wanted: dict[str | None, list[list[int]]]
) -> None:
    paths = {name: folder / name for name in "abc"}
    with LLM(str(folder / "model"), lora=paths, tp=tp, page_size=4) as llm:
        for name, answer in wanted.items():
            assert greedy(llm, name) == answer
        for name, answer in wanted.items():  # again, with their prefixes cached, each its own
            assert greedy(llm, name) == answer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch_tokens": 5},
        {"num_pages": 24, "max_model_len": 96},
        {"max_loras": 1},
        {"disable_prefix_cache": True},
    ],
)
def test_mixed_batches(
    options: dict[str, int], folder: Path, wanted: dict[str | None, list[list[int]]]
) -> None:
    paths = {name: folder / name for name in "abc"}
    with LLM(str(folder / "model"), lora=paths, page_size=4, **options) as llm:
        numbers = {name: llm._model.engine.adapters.find(name) for name in "abc"}
        params = [
            SamplingParams(
                max_tokens=12,
                temperature=0,
                ignore_eos=True,
                adapter=numbers[name].id if name else 0,
            )
            for _ in range(3)
            for name in NAMES
        ]
        results = llm.generate(PROMPTS * 3, params, use_tqdm=False)
        said = [result.outputs[0].token_ids for result in results]
        assert said == [wanted[name][place] for place, name in enumerate(NAMES)] * 3


def test_an_adapter_comes_and_goes(folder: Path, wanted: dict[str | None, list[list[int]]]) -> None:
    with LLM(str(folder / "model"), enable_lora=True) as llm:
        with pytest.raises(ValueError, match="there is no adapter 'x'"):
            greedy(llm, "x")
        llm.load_adapter("x", folder / "a")
        assert greedy(llm, "x") == wanted["a"]
        with pytest.raises(AdapterError, match="is loaded already"):
            llm.load_adapter("x", folder / "b")
        llm.unload_adapter("x")
        with pytest.raises(ValueError, match="there is no adapter 'x'"):
            greedy(llm, "x")
        llm.load_adapter("x", folder / "b")  # nothing that was computed with the other is found
        assert greedy(llm, "x") == wanted["b"]
        with pytest.raises(AdapterError, match="is no folder"):
            llm.load_adapter("y", folder / "nothing")
        with pytest.raises(ValueError, match="there is no adapter 7"):
            llm.generate([[1]], SamplingParams(adapter=7), use_tqdm=False)


def test_adapters_are_off_unless_asked_for(folder: Path) -> None:
    with LLM(str(folder / "model")) as llm, pytest.raises(AdapterError, match="--enable-lora"):
        llm.load_adapter("x", folder / "a")
