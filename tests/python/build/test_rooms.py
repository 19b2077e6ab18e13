"""Rooms of the Python package: who may import whom, and no circle of imports.

Every import statement counts, also one inside a function and one for types alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import minisgl

PACKAGE = Path(minisgl.__file__).parent

# A room (a folder or a file of the package) and the rooms that it may import.
MAY_IMPORT: dict[str, set[str]] = {
    # Libraries, which belong to no process.
    "version": set(),
    "_native": set(),
    "sampling_params": set(),
    "distributed_info": set(),
    "config": {"distributed_info"},
    "flags": {"config", "distributed_info", "version"},
    "environment": {"config", "flags"},
    "log": {"config", "environment"},
    "cores": set(),
    "tasks": set(),
    "system": set(),
    "children": {"flags"},
    "ipc": {"children", "config", "log", "sampling_params", "tasks", "version"},
    "distributed": {"_native", "config", "distributed_info", "environment"},
    "layers": {"_native", "distributed"},
    "kernel": {"_native", "distributed"},
    "model_source": {"model_files"},
    "model_files": {"children", "environment", "sampling_params"},
    # tokenizer/description.py is a program, too, and nobody's server.
    "tokenizer": {"children", "model_files", "sampling_params"},
    # A rank's process.
    "rank": {"_native", "children", "config", "cores", "distributed", "ipc", "log", "tasks"},
    # The server's process. text/worker_process.py is the program of a tokenizer process.
    "text": {"children", "ipc", "model_files", "sampling_params", "tasks", "tokenizer"},
    # _native for the router's table, which is nobody's engine: a millisecond to load.
    "engine": {
        "_native",
        "children",
        "config",
        "cores",
        "environment",
        "ipc",
        "sampling_params",
        "tasks",
    },
    "server": {
        "config",
        "engine",
        "ipc",
        "sampling_params",
        "text",
        "tokenizer",
        "version",
    },
    "startup": {"config", "environment", "ipc"},
    "engines": {"config", "engine", "ipc", "model_files", "startup"},
    "successors": {
        "children",
        "config",
        "engine",
        "engines",
        "ipc",
        "model_files",
        "server",
        "tokenizer",
    },
    # A server's life, and that of a host that has ranks alone.
    "serving": {
        "config",
        "engine",
        "model_files",
        "server",
        "startup",
        "successors",
        "system",
        "tasks",
        "text",
    },
    "rank_host": {"config", "engine", "ipc", "model_files", "system"},
    # LLM and the shell, which run the engine in the caller's process or drive ranks of their own.
    "offline": {
        "_native",
        "config",
        "engine",
        "environment",
        "ipc",
        "model_files",
        "rank",
        "sampling_params",
        "startup",
        "system",
        "tasks",
        "text",
        "tokenizer",
    },
    # What runs in Ray's processes.
    "ray": {
        "config",
        "distributed_info",
        "engine",
        "engines",
        "flags",
        "ipc",
        "log",
        "model_files",
        "server",
        "serving",
        "tasks",
        "text",
    },
    # Programs and the public names.
    "launch": {
        "config",
        "engine",
        "engines",
        "flags",
        "ipc",
        "log",
        "model_files",
        "offline",
        "rank_host",
        "server",
        "serving",
        "startup",
        "system",
        "text",
    },
    "__main__": {"launch"},
    "ctl": set(),  # a client: it starts at once
    "__init__": {"config", "launch", "offline", "sampling_params", "version"},
}


def modules(package: Path) -> dict[str, Path]:
    """Dotted names below the package ("engine.client", "engine", "__init__") and their files."""
    found = {}
    for path in [*package.rglob("*.py"), *package.glob("*.pyi")]:
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def imports(package: Path) -> dict[str, set[str]]:
    """For each module the modules of the package that a statement in it names."""
    known = modules(package)

    def targets(tree: ast.AST) -> Iterator[str]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, "imports name the whole module"
                yield from (f"{node.module}.{alias.name}" for alias in node.names)

    def home(target: str) -> str | None:
        root, _, name = target.partition(".")
        if root != package.name:
            return None
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or "__init__"

    return {
        module: {name for target in targets(ast.parse(path.read_text())) if (name := home(target))}
        - {module}
        for module, path in known.items()
    }


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle, its first module again at the end; empty where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if found := walk(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := walk(module, []))), [])


def rooms(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between rooms."""
    result: dict[str, set[str]] = {module.partition(".")[0]: set() for module in graph}
    for module, named in graph.items():
        room = module.partition(".")[0]
        result[room] |= {name.partition(".")[0] for name in named} - {room}
    return result


def trespasses(graph: dict[str, set[str]]) -> list[str]:
    """Imports that the table doesn't have, as "module imports module"."""
    return [
        f"{module} imports {name}"
        for module, named in sorted(graph.items())
        for name in sorted(named)
        if (room := module.partition(".")[0]) != (other := name.partition(".")[0])
        and other not in MAY_IMPORT[room]
    ]


def test_every_room_is_in_the_table_and_imports_what_it_may() -> None:
    graph = imports(PACKAGE)
    assert set(rooms(graph)) == set(MAY_IMPORT)
    assert trespasses(graph) == []


def test_no_circle_of_modules_and_none_of_rooms() -> None:
    graph = imports(PACKAGE)
    assert circle(graph) == []
    assert circle(rooms(graph)) == []


@pytest.mark.parametrize(
    "statement",
    [
        "from pretend.b import x",
        "import pretend.b",
        "def f():\n    from pretend import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pretend.b import x",
    ],
)
def test_a_circle_is_found(tmp_path: Path, statement: str) -> None:
    package = tmp_path / "pretend"
    (package / "b").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text(statement)
    (package / "b" / "__init__.py").write_text("from pretend.b.c import x")
    (package / "b" / "c.py").write_text("import pretend.a")
    assert circle(imports(package)) == ["a", "b", "b.c", "a"]
    (package / "b" / "c.py").write_text("import json")
    assert circle(imports(package)) == []


def test_a_trespass_is_found() -> None:
    graph = {"server.app": {"rank.main", "engine.client"}, "tokenizer.load": {"text.frontend"}}
    assert trespasses(graph) == [
        "server.app imports rank.main",
        "tokenizer.load imports text.frontend",
    ]
