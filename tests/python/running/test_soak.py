"""A short soak; tests/soak.py is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.soak import soak


def test_nothing_stays_behind(tiny_model: Path, tmp_path: Path) -> None:
    assert soak(tiny_model, tmp_path / "tmp", 500) == []
