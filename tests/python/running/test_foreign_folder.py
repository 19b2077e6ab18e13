"""A server that is started in a folder of somebody else, with every kind of child: what it runs
there, what its children are given, and what they are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess, process_name
from tests.python.launch.test_imports import imported

# What a console script is: Python puts the script's folder first on sys.path, not the working one.
COMMAND = (
    "-c",
    "import sys; sys.path.pop(0); from minisgl.launch import launch_server; "
    "sys.exit(launch_server())",
)
MODULES = "minisgl.launch, minisgl.rank.main, minisgl.text.worker_process"


NAMES = {
    "minisgl-TP0-scheduler",
    "minisgl-TP1-scheduler",
    "minisgl-tokenizer-0",
    "minisgl-detokenizer-0",
    "minisgl-template-0",
}


@pytest.fixture(scope="module")
def server(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("foreign")
    for name in {*imported(f"import runpy, {MODULES}"), "numpy", "torch"}:
        if "." not in name:
            (folder / f"{name}.py").write_text(
                f"open({str(folder / 'executed')!r}, 'a').write({name!r} + ' ')\n"
                "raise ImportError('a module of somebody else')\n"
            )
    assert len(list(folder.iterdir())) > 100
    server = ServerProcess(
        tiny_model,
        tmp_path_factory.mktemp("tmp"),
        *("--num-tokenizer", "1", "--tp", "2", "--kv-cache-tokens", "4K"),
        # SPT_NOENV: names leave the environment, as /proc shows it, alone.
        environment={"MINISGL_API_KEY": "the-key-of-this-server", "SPT_NOENV": "1"},
        program=COMMAND,
        folder=folder,
    )
    try:
        server.wait_ready()
        yield server
    finally:
        server.end()
    assert not (folder / "executed").exists()


def test_nothing_there_is_run_and_children_get_no_secrets(server: ServerProcess) -> None:
    for child in server.children():
        environment = Path(f"/proc/{child}/environ").read_bytes()
        assert b"PATH=" in environment
        assert b"the-key" not in environment


def test_processes_say_what_they_are(server: ServerProcess) -> None:
    names = {pid: process_name(pid) for pid in server.children()}
    assert sorted(names.values()) == sorted(NAMES)
    names[server.process.pid] = process_name(server.process.pid)
    assert names[server.process.pid] == "minisgl-serve"
    for name in NAMES - {"minisgl-template-0"}:  # which writes no lines
        assert f"INFO {name}: ready\n" in server.output
    assert "loading the tokenizer (1 process): " in server.output
    for pid, name in names.items():  # as far as the kernel keeps it, which top shows
        assert Path(f"/proc/{pid}/comm").read_text() == name[:15] + "\n"
    threads = {
        (task / "comm").read_text().strip()
        for pid, name in names.items()
        if name.endswith("scheduler")
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    assert {"minisgl-engine", "minisgl-follow"} <= threads
