"""Every program of examples/ runs, as a reader would run it, and says what it should."""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.python.launch.servers import ServerProcess
from tests.python.programs import run_program

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
SERVE = ("-m", "minisgl")
SECONDS = 240.0  # for one example


def run(name: str, *arguments: str, launcher: Sequence[str] = ()) -> str:
    """What an example writes to its output. It finds this Python and its minisgl-serve."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable] if name.endswith(".py") else ["bash"]
    done = subprocess.run(
        [*command, *launcher, str(EXAMPLES / name), *arguments],
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


SMALL_BLOCK = "--hidden 96 --heads 4 --kv-heads 2 --head-dim 16 --intermediate 160 --repeats 2"


@pytest.mark.parametrize(
    ("ranks", "options"), [(1, ""), (2, "--comm torch"), (4, "--comm native --dtype bfloat16")]
)
def test_tensor_parallel(ranks: int, options: str, tmp_path: Path) -> None:
    arguments = ["--device", "cpu", *SMALL_BLOCK.split(), *options.split()]
    if ranks == 2:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        said = run("tensor_parallel.py", *arguments, launcher=launcher)
    else:  # the same without torchrun, in less time
        said = run_program(EXAMPLES / "tensor_parallel.py", tmp_path, ranks, arguments)
    compared = re.findall(r"off by (\S+) from (.*)", said)
    assert [name for _, name in compared] == ["plain torch", "these layers on one rank"][:ranks]
    limit = 1e-2 if "bfloat16" in options else 1e-5
    assert all(0 <= float(error) < limit for error, _ in compared)
    other = "torch with the same cuts" if ranks > 1 else "plain torch"
    assert re.search(rf"a pass: these layers \d+\.\d+ ms, {other} \d+\.\d+ ms", said)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--rows 0", "argument --rows: must be a positive whole number, got '0'"),
        ("--repeats -1", "argument --repeats: must be a positive whole number, got '-1'"),
        ("--head-dim 7", "--head-dim must be even, for the rotary embedding, got 7"),
        ("--device cpu --graph", "--graph needs a GPU"),
    ],
)
def test_tensor_parallel_refuses_what_it_cannot_do(
    options: str,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["tensor_parallel.py", *options.split()])
    with pytest.raises(SystemExit):
        runpy.run_path(str(EXAMPLES / "tensor_parallel.py"))["arguments"]()
    assert capsys.readouterr().err.endswith(f"error: {sentence}\n")


def test_two_hosts() -> None:
    assert '"completion_tokens":8' in run("two_hosts.sh")


def test_none_is_left_out() -> None:
    here = Path(__file__).read_text()
    names = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")]
    assert names
    assert [name for name in names if f'"{name}"' not in here] == []
