"""A server that is started in a folder of somebody else, with every kind of child."""

from __future__ import annotations

from pathlib import Path

from tests.python.launch.servers import ServerProcess
from tests.python.launch.test_imports import imported

# What a console script is: Python puts the script's folder first on sys.path, not the working one.
COMMAND = (
    "-c",
    "import sys; sys.path.pop(0); from minisgl.launch import launch_server; "
    "sys.exit(launch_server())",
)
MODULES = "minisgl.launch, minisgl.rank.main, minisgl.text.worker_process"


def test_nothing_there_is_run(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    for name in {*imported(f"import runpy, {MODULES}"), "numpy", "torch"}:
        if "." not in name:
            (folder / f"{name}.py").write_text(
                f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + ' ')\n"
                "raise ImportError('a module of somebody else')\n"
            )
    assert len(list(folder.iterdir())) > 100
    server = ServerProcess(
        tiny_model,
        tmp_path / "tmp",
        *("--num-tokenizer", "1", "--tp", "2", "--kv-cache-tokens", "4K"),
        environment={"MINISGL_API_KEY": "the-key-of-this-server"},
        program=COMMAND,
        folder=folder,
    )
    try:
        server.wait_ready()
        children = server.children()
        assert len(children) >= 4
        for child in children:
            assert b"the-key" not in Path(f"/proc/{child}/environ").read_bytes()
    finally:
        server.end()
    assert not (tmp_path / "executed").exists()
