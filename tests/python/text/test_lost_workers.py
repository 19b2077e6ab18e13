"""Tokenizer processes that end, hang or can't be started: what their callers and streams see."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from minisgl.ipc.process import ChildProcess
from minisgl.text.errors import WorkerLost
from minisgl.text.frontend import TextFrontend
from minisgl.text.worker_pool import WorkerClient, WorkerPolicy
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer

QUICK = WorkerPolicy(first_delay=0.01, max_delay=0.1)
WAIT_SECONDS = 60.0

TEXT = "häh 😀😀 ENE END or END: tEND, 😀EN"
OPTIONS = [
    DetokenizerOptions(),
    DetokenizerOptions(stop=["END"]),
    DetokenizerOptions(stop=["EN😀", "END"], include_stop=True),
    DetokenizerOptions(stop=["END"], min_tokens=20),
    DetokenizerOptions(stop=["nothing of it"], continues_prompt=True),
]


@contextlib.asynccontextmanager
async def started(
    model: str, policy: WorkerPolicy = QUICK, command: Sequence[str] | None = None
) -> AsyncIterator[TextFrontend]:
    """A frontend with one encoder and the detokenizer."""
    text = await TextFrontend.start(model, num_tokenizer=1, command=command, policy=policy)
    try:
        yield text
    finally:
        await text.close()


def detokenizer_of(text: TextFrontend) -> WorkerClient:
    assert text._detokenizer is not None
    return text._detokenizer


def pid_of(worker: WorkerClient) -> int:
    assert worker._process is not None
    return worker._process.pid


async def until_replaced(worker: WorkerClient, life: int) -> None:
    await asyncio.wait_for(worker.next_life(life), WAIT_SECONDS)


def program(path: Path, second_start: str, *, every_start: bool = False) -> tuple[str, str]:
    """A worker program that does something else at its second start, or at every one."""
    body = f"""
        import os, signal, sys, threading, time
        from pathlib import Path
        from minisgl.ipc.child import run_child
        from minisgl.text import worker_process
        from minisgl.text.messages import to_text_decoder

        starts = Path({str(path)!r} + ".starts")
        with starts.open("a") as file:
            file.write("x")
        # At the third start, the encoder and the detokenizer have been before.
        if {every_start} or len(starts.read_text()) == 3:
            {second_start}
        run_child(to_text_decoder, worker_process.main, worker_process.refuse_malformed)
    """
    path.write_text(textwrap.dedent(body))
    return (sys.executable, str(path))


# --- callers


async def test_what_a_dead_worker_was_asked_is_asked_again(model: str) -> None:
    async with started(model) as text:
        worker = text._encoders[0]
        for content in ("abc", "abc" * 5000):
            os.kill(pid_of(worker), signal.SIGSTOP)
            answer = asyncio.create_task(text.encode(content))
            await asyncio.sleep(0.05)
            os.kill(pid_of(worker), signal.SIGKILL)
            assert await asyncio.wait_for(answer, WAIT_SECONDS) == text.tokenizer.encode(content)
        assert worker.life == 3


async def test_a_text_that_ends_two_workers_is_refused(model: str, tmp_path: Path) -> None:
    deadly = "worker_process.Worker._encode = lambda *_: os.kill(os.getpid(), 9)"
    command = program(tmp_path / "worker.py", deadly, every_start=True)
    async with started(model, command=command) as text:
        worker = text._encoders[0]
        with pytest.raises(WorkerLost):
            await text.encode("abc")
        await until_replaced(worker, 2)
        assert worker.life == 3


# --- streams


async def test_streams_go_on_when_the_detokenizer_dies_between_their_tokens(model: str) -> None:
    async with started(model) as text:
        ids = text.tokenizer.encode(TEXT)
        # Inside of ä, of an emoji, of a stop string, before and after what is cut off.
        deaths = {TEXT.encode().index(part) + 1 for part in (b"\xc3", b"\x98", b"END o", b"END:")}
        assert len(deaths) == 4
        streams = [text.detokenizer(options) for options in OPTIONS]
        parts: list[list[str]] = [[] for _ in OPTIONS]
        plain = [IncrementalDetokenizer(text.tokenizer, options) for options in OPTIONS]
        for position, token_id in enumerate(ids):
            if position in deaths:
                os.kill(pid_of(detokenizer_of(text)), signal.SIGKILL)
            for stream, shown, other in zip(streams, parts, plain, strict=True):
                if stream.match is None:
                    shown.append(await stream.push([token_id]))
                    assert shown[-1] == other.push([token_id])
                    assert (stream.match, stream.num_tokens) == (other.match, other.num_tokens)
        assert detokenizer_of(text).life == 1 + len(deaths)
        for stream, other in zip(streams, plain, strict=True):
            if stream.match is None:
                assert await stream.finish() == other.finish()


async def test_an_answer_that_died_with_the_process_is_made_again(model: str) -> None:
    async with started(model) as text:
        worker = detokenizer_of(text)
        stream = text.detokenizer(DetokenizerOptions(stop=["END"]))
        shown = await stream.push(text.tokenizer.encode("one "))
        for part in ("two E", "N"):
            life = worker.life
            os.kill(pid_of(worker), signal.SIGSTOP)
            answer = asyncio.create_task(stream.push(text.tokenizer.encode(part)))
            await asyncio.sleep(0.05)
            os.kill(pid_of(worker), signal.SIGKILL)
            shown += await asyncio.wait_for(answer, WAIT_SECONDS)
            assert worker.life == life + 1
        shown += await stream.push(text.tokenizer.encode("D three"), final=True)
        assert shown == "one two "
        assert (stream.match, stream.num_tokens) == ("END", 11)


async def test_a_stream_that_begins_while_the_detokenizer_restarts_waits_for_it(model: str) -> None:
    async with started(model) as text:
        worker = detokenizer_of(text)
        os.kill(pid_of(worker), signal.SIGKILL)
        while worker.serving:
            await asyncio.sleep(0.001)
        stream = text.detokenizer(DetokenizerOptions())
        ids = text.tokenizer.encode("hello")
        assert await asyncio.wait_for(stream.push(ids, final=True), WAIT_SECONDS) == "hello"


async def test_a_stream_is_lost_when_no_detokenizer_comes_back(model: str) -> None:
    policy = WorkerPolicy(first_delay=60, reopen_seconds=0.2)
    async with started(model, policy) as text:
        stream = text.detokenizer(DetokenizerOptions())
        assert await stream.push(text.tokenizer.encode("hello")) == "hello"
        os.kill(pid_of(detokenizer_of(text)), signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"no detokenizer process came back within 0\.2 s"):
            await stream.push(text.tokenizer.encode("hello"))


async def test_streams_that_wait_are_told_when_it_is_over(model: str) -> None:
    async with started(model, WorkerPolicy(first_delay=60)) as text:
        stream = text.detokenizer(DetokenizerOptions())
        os.kill(pid_of(detokenizer_of(text)), signal.SIGKILL)
        push = asyncio.create_task(stream.push(text.tokenizer.encode("hello")))
        await asyncio.sleep(0.2)
        assert not push.done()
    with pytest.raises(WorkerLost):
        await push


# --- processes that hang


HANG = WorkerPolicy(
    first_delay=0.01, tick_seconds=0.25, silent_ticks=8, mute_ticks=12, load_seconds=20
)


async def test_a_stopped_worker_is_killed_and_replaced(
    model: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(model, HANG) as text:
        worker = detokenizer_of(text)
        stream = text.detokenizer(DetokenizerOptions())
        os.kill(pid_of(worker), signal.SIGSTOP)
        ids = text.tokenizer.encode("hello")
        assert await asyncio.wait_for(stream.push(ids, final=True), WAIT_SECONDS) == "hello"
    assert "the detokenizer process gave no sign of life for 2 s" in caplog.text


async def test_a_worker_that_lives_but_answers_nothing_is_replaced(
    model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = "worker_process.Worker._encode = lambda *_: time.sleep(1000)"
    command = program(tmp_path / "worker.py", stuck, every_start=True)
    policy = WorkerPolicy(first_delay=0.01, tick_seconds=0.1, silent_ticks=100, stuck_ticks=5)
    async with started(model, policy, command) as text:
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(text.encode("abc"), WAIT_SECONDS)
    assert caplog.text.count("tokenizer process 0 answered nothing for 0.5 s") == 2


async def test_an_idle_worker_is_no_silent_one(model: str) -> None:
    async with started(model, HANG) as text:
        await asyncio.sleep(3)
        assert (detokenizer_of(text).life, text._encoders[0].life) == (1, 1)


@pytest.mark.parametrize(
    ("second_start", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSTOP)", "gave no sign of life for 3 s at its start"),
        (
            "worker_process.load_tokenizer = lambda *_, **__: time.sleep(1000)",
            "had not loaded after 5 s",
        ),
        ("sys.exit(3)", "ended with status 3 at its start"),
    ],
)
async def test_a_worker_that_hangs_at_its_restart_is_replaced(
    model: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    second_start: str,
    reason: str,
) -> None:
    policy = WorkerPolicy(first_delay=0.01, tick_seconds=0.25, mute_ticks=12, load_seconds=5)
    command = program(tmp_path / "worker.py", second_start)
    async with started(model, policy, command) as text:
        worker = detokenizer_of(text)
        os.kill(pid_of(worker), signal.SIGKILL)
        await until_replaced(worker, 1)
        assert worker.life == 2
    assert reason in caplog.text


# --- delays


def delays(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage().split(" again in ")[1]
        for record in caplog.records
        if " again in " in record.getMessage()
    ]


@pytest.mark.parametrize(
    ("healthy_seconds", "expected"),
    [(1000.0, ["0.01 s", "0.02 s", "0.03 s"]), (0.0, ["0.01 s", "0.01 s", "0.01 s"])],
)
async def test_the_delay_doubles_and_goes_back_after_good_service(
    model: str, caplog: pytest.LogCaptureFixture, healthy_seconds: float, expected: list[str]
) -> None:
    policy = WorkerPolicy(first_delay=0.01, max_delay=0.03, healthy_seconds=healthy_seconds)
    async with started(model, policy) as text:
        worker = text._encoders[0]
        for life in (1, 2, 3):
            os.kill(pid_of(worker), signal.SIGKILL)
            await until_replaced(worker, life)
    assert delays(caplog) == expected


# --- supervisors


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def no_more_files() -> Any:
    """Until the end no file descriptor can be had, but for those that are closed meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_restart_without_file_descriptors_is_tried_again(
    model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("tempfile.tempdir", folder)
        async with started(model) as text:
            worker = detokenizer_of(text)
            stream = text.detokenizer(DetokenizerOptions())
            shown = await stream.push(text.tokenizer.encode("one "))
            before = num_open_files()
            os.kill(pid_of(worker), signal.SIGKILL)
            while worker.serving:
                await asyncio.sleep(0.001)
            with no_more_files():
                for _ in range(1000):
                    if len(delays(caplog)) >= 4:
                        break
                    await asyncio.sleep(0.01)
            shown += await asyncio.wait_for(
                stream.push(text.tokenizer.encode("two"), final=True), WAIT_SECONDS
            )
            assert shown == "one two"
            assert "Too many open files" in caplog.text
            assert os.listdir(folder) == []
            for _ in range(1000):  # ZeroMQ closes sockets in a thread of its own
                if num_open_files() <= before:
                    break
                await asyncio.sleep(0.01)
            assert num_open_files() <= before


async def test_what_nobody_foresaw_does_not_end_a_supervisor(
    model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(model) as text:
        worker = detokenizer_of(text)
        spawn, failures = ChildProcess.spawn, ["first", "second"]

        async def fail_twice(*arguments: Any) -> Any:
            if failures:
                raise RuntimeError(failures.pop(0))
            return await spawn(*arguments)

        monkeypatch.setattr(ChildProcess, "spawn", staticmethod(fail_twice))
        os.kill(pid_of(worker), signal.SIGKILL)
        await until_replaced(worker, 1)
    assert "can't be kept serving: second; starting it again" in caplog.text
