"""What an import brings: no torch or transformers to serve, and no server into a rank."""

from __future__ import annotations

import subprocess
import sys

import pytest

import minisgl

HEAVY = {"torch", "transformers", "huggingface_hub", "numpy"}


def imported(statement: str) -> set[str]:
    """Top-level modules and minisgl's own after a statement in a new interpreter."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout.split()
    own = {name for name in modules if name.startswith("minisgl.")}
    return own | {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("module", ["minisgl", "minisgl.server", "minisgl.launch"])
def test_the_server_imports_nothing_heavy(module: str) -> None:
    assert imported(f"import {module}") & HEAVY == set()


def test_a_rank_imports_neither_server_nor_tokenizer() -> None:
    modules = imported("import minisgl.rank.main")
    unwanted = HEAVY | {"starlette", "hypercorn", "jinja2", "tokenizers", "minisgl.server"}
    assert modules & unwanted == set()


def test_messages_need_no_sockets() -> None:
    assert "zmq" not in imported("import minisgl.ipc.messages")


def test_the_public_names_are_there() -> None:
    program = "from minisgl import SamplingParams, ServerArgs, launch_server\nimport minisgl"
    assert "minisgl.launch" in imported(program)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        minisgl.nothing_of_that_name  # noqa: B018
