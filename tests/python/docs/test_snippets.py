"""The programs of docs/DISTRIBUTED.md run, and print what stands behind their print() calls."""

from __future__ import annotations

import contextlib
import io
import multiprocessing as mp
import os
import re
import socket
import traceback
import warnings
from multiprocessing.queues import Queue
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[3] / "docs" / "DISTRIBUTED.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
SECONDS = 60.0  # for one snippet
PRELOAD = ["torch.distributed", "minisgl.distributed", "minisgl.layers", "minisgl.ipc.queues"]


def num_ranks(snippet: str) -> int:
    launcher = re.match(r"# torchrun --nproc-per-node (\d+) ", snippet)
    return int(launcher[1]) if launcher else 1


def promised(snippet: str) -> list[str]:
    """What the page says that a snippet prints, a line for each print()."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)


def run(snippet: str, folder: Path) -> list[str]:
    """The lines that rank 0 prints, working in `folder`. Ranks are forked from a process that has
    imported torch.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results: Queue[tuple[bool, str]] = context.Queue()
    size = num_ranks(snippet)
    ranks = [
        context.Process(target=run_rank, args=(snippet, folder, rank, port, results), daemon=True)
        for rank in range(size)
    ]
    for process in ranks:
        process.start()
    try:
        succeeded, output = results.get(timeout=SECONDS)
        assert succeeded, output
    finally:
        for process in ranks:
            process.join(timeout=10)
            process.kill()
    assert [process.exitcode for process in ranks] == [0] * size
    return output.splitlines()


def run_rank(
    snippet: str, folder: Path, rank: int, port: int, results: Queue[tuple[bool, str]]
) -> None:
    """A rank as torchrun would start it. Reports rank 0's output, or what went wrong."""
    os.chdir(folder)
    size = num_ranks(snippet)
    if size > 1:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("error", category)
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(snippet, PAGE.name, "exec"), {"__name__": "__main__"})
    except BaseException:
        results.put((False, f"rank {rank} of {size}:\n{traceback.format_exc()}"))
        raise
    if rank == 0:
        results.put((True, output.getvalue()))


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_prints_what_it_says(number: int, tmp_path: Path) -> None:
    assert run(SNIPPETS[number], tmp_path) == promised(SNIPPETS[number])


def test_every_print_says_what_it_prints() -> None:
    for snippet in SNIPPETS:
        assert snippet.count("print(") == len(promised(snippet)) > 0, snippet
