"""The programs of docs/DISTRIBUTED.md run, and print what stands behind their print() calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.python.programs import run_program

PAGE = Path(__file__).resolve().parents[3] / "docs" / "DISTRIBUTED.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def num_ranks(snippet: str) -> int:
    launcher = re.match(r"# torchrun --nproc-per-node (\d+) ", snippet)
    return int(launcher[1]) if launcher else 1


def promised(snippet: str) -> list[str]:
    """What the page says that a snippet prints, a line for each print()."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_prints_what_it_says(number: int, tmp_path: Path) -> None:
    snippet = SNIPPETS[number]
    program = tmp_path / f"{PAGE.stem}-{number}.py"
    program.write_text(snippet)
    assert run_program(program, tmp_path, num_ranks(snippet)).splitlines() == promised(snippet)


def test_every_print_says_what_it_prints() -> None:
    for snippet in SNIPPETS:
        assert snippet.count("print(") == len(promised(snippet)) > 0, snippet
