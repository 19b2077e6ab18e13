"""A child process from the parent's end: messages, malformed ones too, and every way to end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from minisgl.ipc.messages import (
    Alive,
    EngineOptions,
    FromRank,
    PhaseReport,
    Place,
    Ready,
    Shutdown,
    Start,
    StepOutputs,
    Submit,
    from_rank_decoder,
)
from minisgl.ipc.process import ChildProcess, describe_exit
from minisgl.sampling_params import SamplingParams
from tests.python.waiting import PATIENCE

FAKE_RANK = Path(__file__).parents[1] / "engine" / "fake_rank.py"

NAME = "minisgl-TP0-scheduler"

Rank = ChildProcess[FromRank]


async def ready_rank() -> Rank:
    child: Rank = await Rank.spawn((sys.executable, str(FAKE_RANK)), NAME, from_rank_decoder)
    await child.configure(Start(EngineOptions(model_path="fake:ok"), Place()))
    while not isinstance(message := await child.receive(), Ready):
        assert isinstance(message, (PhaseReport, Alive))
    return child


async def next_outputs(child: Rank) -> StepOutputs:
    while not isinstance(message := await child.receive(), StepOutputs):
        assert isinstance(message, Alive)
    return message


async def test_malformed_requests_are_answered_or_dropped_and_harm_nobody() -> None:
    child = await ready_rank()
    for malformed in (None, [1, 2], "text", {"type": "unknown"}, {"type": "abort", "ids": [-1]}):
        child.send(malformed)
    child.send({"type": "submit", "id": 5, "prompt": [-1], "max_tokens": 1, "seed": 0})
    answer = await next_outputs(child)
    assert [(o.id, o.finish, o.error_code) for o in answer.outputs] == [
        (5, "error", "invalid_request")
    ]
    child.send(Submit(id=6, prompt=[1], params=SamplingParams(max_tokens=1, seed=0)))
    answer = await next_outputs(child)
    assert answer.outputs[0].token_ids == [2]
    assert await child.stop(Shutdown()) == 0
    child.close()


async def test_a_child_is_deaf_to_sigint_and_ends_at_sigterm() -> None:
    child = await ready_rank()
    os.kill(child.pid, signal.SIGINT)
    child.send(Submit(id=1, prompt=[1], params=SamplingParams(max_tokens=1, seed=0)))
    await next_outputs(child)
    assert await child.stop(None) == 0
    child.close()


async def test_a_stopped_child_is_killed_in_the_end() -> None:
    child = await ready_rank()
    os.kill(child.pid, signal.SIGSTOP)
    assert await child.stop(Shutdown(), patience=0.2) == -signal.SIGKILL
    child.close()


async def test_a_child_that_sends_nonsense_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "nonsense.py"
    program.write_text(
        textwrap.dedent(
            """
            import sys, time, zmq
            socket = zmq.Context().socket(zmq.PUSH)
            socket.connect(sys.argv[2])
            socket.send(b"nonsense")
            time.sleep(600)
            """
        )
    )
    child: Rank = await Rank.spawn((sys.executable, str(program)), NAME, from_rank_decoder)
    reader = asyncio.create_task(child.receive())
    assert await asyncio.wait_for(child.wait(), PATIENCE) == -signal.SIGKILL
    reader.cancel()
    child.close()


async def test_sockets_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever is killed, and whenever, leaves nothing."""
    made: list[object] = []
    for name in ("mkdtemp", "mkstemp"):
        monkeypatch.setattr(f"tempfile.{name}", lambda *args, **options: made.append(args))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    program = "import time; time.sleep(600)"
    child: Rank = await Rank.spawn((sys.executable, "-c", program), NAME, from_rank_decoder)
    assert os.listdir(tmp_path) == []
    await child.stop(None)
    child.close()
    child = await ready_rank()  # that one connects
    assert os.listdir(tmp_path) == []
    assert await child.stop(Shutdown()) == 0
    child.close()
    with pytest.raises(FileNotFoundError):
        await Rank.spawn(("/nowhere",), NAME, from_rank_decoder)
    assert (os.listdir(tmp_path), made) == ([], [])


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "ended with status 3"),
        (-11, "was killed by SIGSEGV"),
        (-9, "was killed by SIGKILL (often the kernel, out of memory)"),
        (-250, "was killed by signal 250"),
    ],
)
def test_the_end_is_described(status: int, words: str) -> None:
    assert describe_exit(status) == words
