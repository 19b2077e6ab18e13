"""Agents' turns against a whole server: next to no token of a prompt is computed twice."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parents[3] / "bench"
AIM = 1.05  # computed over new


@pytest.fixture
def agents(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("agent_turns")


def test_prompts_are_computed_once(agents: Any, tmp_path: Path) -> None:
    """Thoughts stay while tools speak, and go when the user does. The client sends thoughts and
    calls in fields of their own.
    """
    importlib.import_module("chain_model").write_chain_model(tmp_path)
    args = argparse.Namespace(agents=2, turns=6, output_tokens=300, roles="call")
    counts = agents.replay(str(tmp_path), args)
    assert counts.answer > 12 * 100
    assert counts.prompt > 3 * counts.new
    assert counts.new <= counts.prompt - counts.cached < AIM * counts.new


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [(b"", b"a", 0), (b"ab", b"ac", 1), (b"ab", b"ab", 2), (b"abc", b"ab", 2), (b"x", b"y", 0)],
)
def test_what_two_texts_begin_with(agents: Any, one: bytes, other: bytes, shared: int) -> None:
    assert agents.num_shared(one, other) == shared
