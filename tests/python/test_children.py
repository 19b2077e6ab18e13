"""Processes that the package starts: what they run, and what they are given."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minisgl
from minisgl.children import child_environment, python_command
from minisgl.flags import secret_variables
from minisgl.ipc.process import ChildProcess
from tests.python.waiting import until

PACKAGE = Path(minisgl.__file__).parent

# What starts a process, and who may name it: everybody else goes through these.
STARTERS = {
    "subprocess": {"children.py", "engine/machine.py", "rank/grammars.py"},
    "create_subprocess_exec": {"ipc/process.py", "successors.py", "text/limited_process.py"},
    "executable": {"children.py", "model_files/default_model.py"},  # there for uv and a sentence
    "execvp": {"children.py"},
    "fork": {"text/grammar_process.py"},  # a process of one thread
}
OTHERS = {
    *("multiprocessing", "ProcessPoolExecutor", "pty", "create_subprocess_shell", "system"),
    *("popen", "forkpty", "posix_spawn", "posix_spawnp", "execv", "execve", "execvpe"),
    *("execl", "execle", "execlp", "execlpe", "spawnl", "spawnv", "spawnve", "spawnvp"),
}


def names(path: Path) -> set[str]:
    """Modules, names and attributes that a file names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            if node.attr == "system" and ast.unparse(node.value) != "os":
                continue  # a field of that name
            found.add(node.attr)
            if isinstance(node.value, ast.Name) and node.value.id == "asyncio":
                found.discard("subprocess")  # asyncio.subprocess has constants and types
        elif isinstance(node, ast.alias):
            found.update(node.name.split("."))
    return found


def test_only_known_files_start_processes() -> None:
    for path in PACKAGE.rglob("*.py"):
        file = str(path.relative_to(PACKAGE))
        named = names(path)
        assert named & OTHERS == set(), file
        for starter, allowed in STARTERS.items():
            assert starter not in named or file in allowed, (file, starter)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder in which modules lie that children import, or shall run: each leaves a word."""
    folder = tmp_path / "trap"
    folder.mkdir()
    for name in ("runpy", "zmq", "json", "wanted", "uvloop"):
        (folder / f"{name}.py").write_text("print('trapped')")
    return folder


def run(command: tuple[str, ...], folder: Path, **environment: str) -> str:
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize("safe", ["", "1"])
def test_a_module_runs_as_with_m_but_not_the_working_folders(
    tmp_path: Path, trap: Path, safe: str
) -> None:
    module = tmp_path / "own" / "wanted.py"
    module.parent.mkdir()
    module.write_text("import json, sys, zmq\nprint(__name__, sys.argv, sys.path)")
    output = run(
        (*python_command("wanted"), "a", "b"),
        trap,
        PYTHONPATH=str(module.parent),
        PYTHONSAFEPATH=safe,
    )
    assert output.startswith(f"__main__ [{str(module)!r}, 'a', 'b'] [{str(module.parent)!r}, ")
    assert str(trap) not in output
    assert "trapped" not in output


def test_the_command_itself_is_as_careful(trap: Path) -> None:
    output = run((sys.executable, "-m", "minisgl", "--version"), trap)
    assert output.startswith("minisgl ")


def environment_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


async def test_secrets_are_not_in_a_childs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"MINISGL_API_KEY", "MINISGL_ADMIN_API_KEY", "MINISGL_DIST_SECRET"}
    assert secret_variables() == secrets
    for name in (*secrets, "MINISGL_OTHER"):
        monkeypatch.setenv(name, "value")
    assert {"MINISGL_OTHER", "PATH"} <= set(child_environment())
    command = (sys.executable, "-c", "import time; time.sleep(60)")
    child = await ChildProcess.spawn(command, "minisgl-test", repr)
    try:
        await until(lambda: environment_of(child.pid))  # empty while the program is loaded
        environment = environment_of(child.pid)
    finally:
        await child.stop(None)
        child.close()
    assert b"MINISGL_OTHER=value" in environment
    assert not [name for name in secrets if name.encode() in environment]
