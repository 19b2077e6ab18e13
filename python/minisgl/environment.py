"""What the environment says beside the flags of minisgl-serve (flags.py)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path

from minisgl.config import LOG_FORMATS, LOG_LEVELS
from minisgl.flags import ENV_PREFIX, parse_count


def default_cache_dir(environment: Mapping[str, str] | None = None) -> Path | None:
    """Where the default model, the shell's history and measurements of GPUs are kept: minisgl in
    XDG_CACHE_HOME, where that is set to an absolute path, else in ~/.cache. None without a home.
    """
    base = (os.environ if environment is None else environment).get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "minisgl"
    try:
        return Path.home() / ".cache" / "minisgl"
    except RuntimeError:  # HOME isn't set, and this user is in no list of users
        return None


def child_log_variables(level: str, log_format: str) -> dict[str, str]:
    """The environment that tells child processes how to log."""
    return {ENV_PREFIX + "LOG_LEVEL": level, ENV_PREFIX + "LOG_FORMAT": log_format}


def child_log_settings(environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    """Level and format of a child process's log lines: its parent's, who is a server; under an LLM
    warnings, as text.
    """
    environment = os.environ if environment is None else environment
    level, log_format = (environment.get(name, "") for name in child_log_variables("", ""))
    return (
        level if level in LOG_LEVELS else "warning",
        log_format if log_format in LOG_FORMATS else "text",
    )


def pynccl_buffer_limit(environment: Mapping[str, str] | None = None) -> int | None:
    """Largest buffer of the NCCL communicator in bytes, from MINISGL_PYNCCL_MAX_BUFFER_SIZE
    ("64M"); None where it isn't set. Raises ValueError for anything but a whole number from 0 on,
    with K, M, G or none.
    """
    variable = ENV_PREFIX + "PYNCCL_MAX_BUFFER_SIZE"
    text = (os.environ if environment is None else environment).get(variable, "")
    if not text:
        return None
    try:
        limit = parse_count(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"environment variable {variable}: {error}") from None
    if limit < 0:
        raise ValueError(
            f"environment variable {variable}: expected at least 0 bytes, got {text!r}"
        )
    return limit
