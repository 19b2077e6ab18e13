"""LLM over several ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from minisgl import LLM, SamplingParams
from minisgl.model_files.files import ModelError
from minisgl.offline.local_model import EngineError
from tests.python.launch.servers import alive, processes, until
from tests.python.running.tiny_model import make_tiny_model

PROMPTS = [[1, 2, 3], [4, 5], list(range(1, 200))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ranks") / "tiny")


def children() -> list[int]:
    own = str(os.getpid())
    return sorted(
        pid for pid, (state, parent) in processes().items() if parent == own and state != "Z"
    )


def test_two_ranks_give_what_one_gives_and_leave_nothing(model: Path) -> None:
    before = children()
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    tokens = []
    for size in (1, 2):
        with LLM(str(model), tp=size, show_progress=False) as llm:
            results = llm.generate(PROMPTS, params, use_tqdm=False)
            tokens.append([result.outputs[0].token_ids for result in results])
            assert llm.stats().num_running == 0
    assert tokens[0] == tokens[1]
    assert children() == before


def test_a_rank_that_dies_is_an_engine_error(model: Path) -> None:
    before = children()
    with LLM(str(model), tp=2, show_progress=False) as llm:
        ranks = [pid for pid in children() if pid not in before]
        os.kill(ranks[1], signal.SIGKILL)
        with pytest.raises(EngineError, match="rank 1 was killed by SIGKILL"):
            llm.generate([5], SamplingParams(max_tokens=8000, ignore_eos=True), use_tqdm=False)
    until(lambda: not any(map(alive, ranks)))


def test_a_size_that_does_not_divide_is_a_model_error(model: Path) -> None:
    with pytest.raises(ModelError, match="rank"):
        LLM(str(model), tp=3, show_progress=False)
