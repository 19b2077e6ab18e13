"""Every program of examples/ runs, as a reader would run it, and says what it should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SERVE = ("-m", "minisgl")
SECONDS = 240.0  # for one example


def run(name: str, *arguments: str) -> str:
    """What an example writes to its output. It finds this Python and its minisgl-serve."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable] if name.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*command, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_openai_client(default_gguf: Path, tmp_path: Path) -> None:
    server = ServerProcess(
        default_gguf, tmp_path / "server", "--max-model-len", "512", program=SERVE
    )
    try:
        said = run("openai_client.py", "--url", f"http://127.0.0.1:{server.wait_ready()}")
    finally:
        server.signal(signal.SIGTERM)
        assert server.wait() == 0, server.output
    whole, streamed = said.split("streamed:")
    assert "Shakespeare" in whole
    assert "Shakespeare" in streamed
    assert re.search(r"\d+ tokens in, \d+ out", whole)


def test_offline_batch(default_gguf: Path) -> None:
    said = run("offline_batch.py", str(default_gguf))
    assert "The capital of France is ->' Paris" in said
    assert said.count("Once upon a time ->") == 2
    assert "chat:" in said


def test_logprobs(default_gguf: Path) -> None:
    said = run("logprobs.py", str(default_gguf))
    prompt, made = said.split("what follows")
    assert re.search(r"' over' +9\d\.\d%", prompt)
    assert re.search(r"perplexity \d+", prompt)
    assert re.search(r"' dog' +' dog' \d\d\.\d%", made)


@pytest.mark.parametrize(("ranks", "comm"), [(2, "torch"), (3, "shm")])
def test_sharded_layers(ranks: int, comm: str) -> None:
    said = run("sharded_layers.py", "--ranks", str(ranks), "--comm", comm)
    assert sorted(re.findall(rf"rank (\d) of {ranks}: holds {480 // ranks} of 480", said)) == [
        str(rank) for rank in range(ranks)
    ]


def test_two_hosts() -> None:
    assert '"completion_tokens":8' in run("two_hosts.sh")


def test_none_is_left_out() -> None:
    here = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert names
    assert [name for name in names if f'"{name}"' not in here] == []
