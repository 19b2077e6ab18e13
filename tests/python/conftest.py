"""What tests of several rooms need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model

IN_CI = bool(os.environ.get("CI"))

# How long an example takes says something of the machine only. In CI each run tries the same ones.
settings.register_profile(
    "minisgl",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=IN_CI,
    database=None if IN_CI else settings.default.database,
)
settings.load_profile("minisgl")


@pytest.fixture(scope="session")
def default_gguf() -> Path:
    """The default model's file: what MINISGL_TEST_MODEL names, or fetched as a user would.

    Skips where it can't be had; in CI that fails.
    """
    if path := os.environ.get("MINISGL_TEST_MODEL"):
        return Path(path)
    try:
        return Path(resolve_model(None, show_progress=False).path)
    except ModelError as error:
        if IN_CI:
            pytest.fail(str(error))
        pytest.skip(str(error))
