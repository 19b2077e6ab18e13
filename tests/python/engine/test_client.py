"""EngineClient against a real rank process with a fake native engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from minisgl.engine import local_ranks
from minisgl.engine.api import EngineBusy, EngineStartError, EngineUnavailable
from minisgl.engine.client import EngineClient
from minisgl.engine.group import RankGroup
from minisgl.engine.local_ranks import LocalRanks
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineInfo, EngineOptions, EngineStats, Output, PhaseReport
from minisgl.sampling_params import SamplingParams
from tests.python.engine.fake_rank import (
    FAIL,
    KILL,
    KILL_ONCE,
    REFUSE,
    SLOW,
    SLOW_SECONDS,
    STOP_ONCE,
    STUCK_ONCE,
    UNSENDABLE_ONCE,
)
from tests.python.engine.reading import read
from tests.python.waiting import PATIENCE, until

FAKE_RANK = (sys.executable, str(Path(__file__).with_name("fake_rank.py")))
FAKE_RANKS = functools.partial(LocalRanks, FAKE_RANK)
FAST = RestartPolicy(max_failures=2, first_delay=0.01, max_replays=1)


def make_client(kind: str = "ok", **options: Any) -> EngineClient:
    max_running = options.pop("max_running", 256)
    engine = EngineOptions(model_path=f"fake:{kind}", max_running=max_running)
    return EngineClient(engine, launcher=FAKE_RANKS, **{"restart": FAST, **options})


@pytest_asyncio.fixture
async def client() -> AsyncIterator[EngineClient]:
    client = make_client()
    await client.start(PATIENCE)
    yield client
    await client.close()


def params(max_tokens: int = 5) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens)


async def test_streams_deliver_their_tokens_once_and_end(client: EngineClient) -> None:
    streams = [client.submit([10 * i], params(5 + i)) for i in range(20)]
    for i, (tokens, last) in enumerate(await asyncio.gather(*map(read, streams))):
        assert tokens == [10 * i + 1 + k for k in range(5 + i)]
        assert streams[i].received == tokens
        assert last.finish == "length"
        with pytest.raises(StopAsyncIteration):
            await streams[i].next()
    assert client.num_live == 0


async def test_tokens_of_steps_are_told(client: EngineClient) -> None:
    heard: list[tuple[float, int]] = []
    client.on_steps = lambda tokens, steps: heard.append((tokens, steps))
    await asyncio.gather(*(read(client.submit([10 * i], params(20))) for i in range(3)))
    await until(lambda: sum(tokens * steps for tokens, steps in heard) == pytest.approx(60))
    assert sum(steps for _, steps in heard) == client.stats.num_steps


async def test_a_slow_reader_gets_everything_in_one_output(client: EngineClient) -> None:
    stream = client.submit([7], params(6))
    await until(lambda: stream.finished)
    output = await stream.next()
    assert output.token_ids == [8, 9, 10, 11, 12, 13]
    assert output.finish == "length"
    assert output.timings == (0.0, 0.0, 0.0)


async def test_a_reader_may_wait_for_the_whole(client: EngineClient) -> None:
    stream = client.submit([7], params(6))
    output = await stream.next(whole=True)
    assert (output.token_ids, output.finish) == ([8, 9, 10, 11, 12, 13], "length")
    with pytest.raises(StopAsyncIteration):
        await stream.next(whole=True)


async def test_two_hundred_aborts_leave_nothing(client: EngineClient) -> None:
    streams = [client.submit([1], params(90_000)) for _ in range(200)]
    for number, stream in enumerate(streams):
        if number % 2:
            await stream.next()
        stream.abort()
        stream.abort()
    for stream in streams:
        _, last = await read(stream)
        assert last.finish == "abort"
    await until(lambda: client.num_live == 0)
    tokens, _ = await read(client.submit([1], params(3)))
    assert tokens == [2, 3, 4]
    assert client.stats.num_running <= 1


async def test_what_cannot_be_served_is_refused_with_its_numbers(client: EngineClient) -> None:
    with pytest.raises(ValueError, match="empty"):
        client.submit([], params())
    with pytest.raises(ValueError, match="between 0 and 999, got 1000"):
        client.submit([1, 1000], params())
    with pytest.raises(ValueError, match="got -1"):
        client.submit([-1], params())
    with pytest.raises(ValueError, match="3 tokens and max_tokens is 99998"):
        client.submit([1, 2, 3], params(99_998))
    with pytest.raises(ValueError, match="1000"):
        client.submit([1], SamplingParams(stop_token_ids=[1000]))
    assert client.num_live == 0


async def test_a_request_that_the_binding_refuses_ends_alone(client: EngineClient) -> None:
    good = client.submit([1], params(10))
    _, last = await read(client.submit([REFUSE], params()))
    assert (last.finish, last.error_code) == ("error", "invalid_request")
    assert (await read(good))[1].finish == "length"
    assert client.state == "ready"


async def test_a_full_queue_is_busy() -> None:
    client = make_client(max_running=2, max_waiting=3)
    try:
        await client.start(PATIENCE)
        streams = [client.submit([1], params(90_000)) for _ in range(5)]
        with pytest.raises(EngineBusy):
            client.submit([1], params())
        streams[0].abort()
        await until(lambda: client.num_live == 4)
        client.submit([1], params())
    finally:
        await client.close()


@pytest.mark.parametrize("poison", [KILL, FAIL])
async def test_a_request_that_kills_each_engine_ends_and_the_engine_comes_back(
    client: EngineClient, poison: int
) -> None:
    bad = client.submit([poison], params(90_000))
    await until(lambda: client.state == "restarting")
    with pytest.raises(EngineUnavailable, match="restarting"):
        client.submit([1], params())
    tokens, last = await read(bad)
    assert (last.finish, last.error_code) == ("error", "engine_failure")
    assert last.error
    assert bad.received == tokens
    assert client.num_live == 0
    await until(lambda: client.state == "ready")
    assert client.num_restarts == 2
    tokens, _ = await read(client.submit([1], params(3)))
    assert tokens == [2, 3, 4]


@pytest.mark.parametrize("poison", [KILL_ONCE, STOP_ONCE, UNSENDABLE_ONCE])
async def test_streams_go_on_where_they_stopped_when_the_engine_died(
    client: EngineClient, poison: int
) -> None:
    streams = [client.submit([10 * i], params(400)) for i in range(20)]
    streams.append(client.submit([poison], params(50)))
    aborted = client.submit([7], params(90_000))
    await until(lambda: client.state == "restarting")
    await until(lambda: client.stats == EngineStats())  # nothing runs in an engine that died
    aborted.abort()
    await until(lambda: client.num_replaying == len(streams))
    for stream in streams:
        tokens, last = await read(stream)
        first, count = stream.request.prompt[0] + 1, stream.request.params.max_tokens
        assert tokens == [(first + k) % 1000 for k in range(count)]
        assert last.finish == "length"
    assert (await read(aborted))[1].finish == "abort"
    assert client.num_restarts == 1
    assert client.num_live == client.num_replaying == 0


async def test_streams_of_an_engine_that_dies_in_the_drain_go_on(client: EngineClient) -> None:
    streams = [client.submit([10 * i], params(400)) for i in range(5)]
    streams.append(client.submit([KILL_ONCE], params(50)))
    drained = asyncio.create_task(client.drain(PATIENCE))
    for stream in streams:
        tokens, last = await read(stream)
        first, count = stream.request.prompt[0] + 1, stream.request.params.max_tokens
        assert tokens == [(first + k) % 1000 for k in range(count)]
        assert last.finish == "length"
    assert await drained
    assert client.num_restarts == 1
    with pytest.raises(EngineUnavailable, match="shutting down"):
        client.submit([1], params())


async def test_an_engine_that_dies_idle_in_the_drain_has_no_successor(
    client: EngineClient, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = client.submit([KILL], params(90_000))
    await until(lambda: client.num_restarts == 1)
    assert await client.drain(PATIENCE)
    assert stuck.finish == "error"
    await until(lambda: "it isn't needed any more" in caplog.text)
    assert client.num_restarts == 1


async def test_an_engine_is_restarting_as_soon_as_its_end_is_known(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ranks, "LAST_WORDS_SECONDS", 3600)
    client.submit([KILL_ONCE], params(400))
    await until(lambda: client.state == "restarting")
    with pytest.raises(EngineUnavailable) as refusal:
        client.submit([1], params())
    assert refusal.value.state == "restarting"
    assert client.phase == "ending the engine that died"


async def test_a_request_that_is_aborted_while_the_engine_loads_again_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv("FAKE_RANK_MARKER", str(tmp_path / "started"))
    monkeypatch.setenv("FAKE_RANK_GATE", str(gate))
    reports: list[PhaseReport] = []
    client = make_client("gated", on_phase=reports.append)
    try:
        await client.start(PATIENCE)
        aborted = client.submit([7], params(90_000))
        stays = client.submit([KILL_ONCE], params(400))
        reports.clear()
        await until(lambda: "loading the native module" in [report.phase for report in reports])
        assert client.num_replaying == 2
        aborted.abort()
        assert client.num_live == client.num_replaying == 1
        gate.touch()
        tokens, last = await read(stays)
        assert (len(tokens), last.finish) == (400, "length")
        assert client.stats.num_running == 0  # in the engine, too
        assert client.num_replaying == 0
    finally:
        await client.close()


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Whoever opens a file or a socket is refused: EMFILE."""
    limit = 16
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = []
    while not fillers or fillers[-1] < limit:
        fillers.append(os.dup(0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in fillers:
            os.close(descriptor)


async def test_streams_go_on_when_restarts_had_no_files_for_a_while(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(restart=RestartPolicy(max_failures=1000, first_delay=0.01, max_delay=0.1))
    try:
        await client.start(PATIENCE)
        stream = client.submit([KILL_ONCE], params(400))
        with no_more_files():
            await until(lambda: caplog.text.count("Too many open files") > 2)
            assert client.state == "restarting"
        tokens, last = await read(stream)
        assert tokens == [(KILL_ONCE + 1 + k) % 1000 for k in range(400)]
        assert last.finish == "length"
        assert files(directory) == []
    finally:
        await client.close()


async def test_restarts_that_never_have_files_are_the_end(
    client: EngineClient, directory: Path
) -> None:
    stream = client.submit([KILL_ONCE], params(400))
    with no_more_files():
        reason = await asyncio.wait_for(client.wait_failed(), PATIENCE)
        _, last = await read(stream)
    assert "Too many open files" in reason
    assert (last.finish, last.error_code) == ("error", "engine_failure")
    assert client.state == "failed"
    assert files(directory) == []


async def test_an_unforeseen_error_while_starting_again_is_a_failure_like_others(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(group: RankGroup) -> list[EngineInfo]:
        raise RuntimeError("nobody thought of this")

    stream = client.submit([KILL_ONCE], params(400))
    monkeypatch.setattr(RankGroup, "start", start)
    assert "nobody thought of this" in await asyncio.wait_for(client.wait_failed(), PATIENCE)
    assert (await read(stream))[1].error_code == "engine_failure"


async def test_an_unforeseen_error_in_the_supervisor_is_the_end(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resumption(stream: TokenStream) -> Any:
        raise RuntimeError("nobody thought of this")

    stream = client.submit([KILL_ONCE], params(400))
    monkeypatch.setattr(TokenStream, "resumption", resumption)
    assert "nobody thought of this" in await asyncio.wait_for(client.wait_failed(), PATIENCE)
    assert (await read(stream))[1].error_code == "engine_failure"


async def test_an_error_while_outputs_are_handed_out_loses_no_token(
    client: EngineClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deliver = TokenStream.deliver
    steps = iter(range(10**6))

    def fails_once(stream: TokenStream, output: Output) -> None:
        if next(steps) == 3:
            raise RuntimeError("nobody thought of this")
        deliver(stream, output)

    monkeypatch.setattr(TokenStream, "deliver", fails_once)
    tokens, last = await read(client.submit([7], params(50)))
    assert tokens == list(range(8, 58))
    assert (last.finish, client.num_restarts) == ("length", 1)
    assert "the engine died: the engine process can't be heard" in caplog.text


async def test_a_step_that_never_ends_is_a_lost_rank_and_is_replayed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client = make_client(step_timeout=2)
    try:
        await client.start(PATIENCE)
        await asyncio.sleep(4)  # an idle engine makes no progress and isn't lost
        assert client.num_restarts == 0
        streams = [client.submit([prompt], params(50)) for prompt in (10, STUCK_ONCE)]
        await until(lambda: client.state == "restarting")
        for stream in streams:
            tokens, last = await read(stream)
            assert tokens == [stream.request.prompt[0] + 1 + k for k in range(50)]
            assert last.finish == "length"
        assert client.num_restarts == 1
    finally:
        await client.close()
    assert (
        "the engine process made no progress for 2 s with work to do (--step-timeout)"
        in caplog.text
    )


async def test_a_slow_step_that_progresses_is_left_alone() -> None:
    client = make_client(step_timeout=2)
    try:
        await client.start(PATIENCE)
        began = asyncio.get_running_loop().time()
        tokens, _ = await read(client.submit([SLOW], params(10)))
        assert asyncio.get_running_loop().time() - began >= SLOW_SECONDS
        assert tokens == [(SLOW + 1 + k) % 1000 for k in range(10)]
        assert client.num_restarts == 0
    finally:
        await client.close()


async def test_a_load_that_stands_still_ends_the_start_and_a_slow_one_does_not() -> None:
    client = make_client("hang", step_timeout=2)
    with pytest.raises(EngineStartError, match=r"no progress for 2 s .* while starting"):
        await client.start(PATIENCE)
    await client.close()
    client = make_client("slow", step_timeout=2)
    await client.start(PATIENCE)
    await client.close()


async def test_too_many_failures_in_a_row_are_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_RANK_MARKER", str(tmp_path / "started"))
    client = make_client("once")
    try:
        await client.start(PATIENCE)
        client.submit([KILL], params(90_000))
        assert await asyncio.wait_for(client.wait_failed(), PATIENCE) == "it started once already"
        assert client.state == "failed"
        with pytest.raises(EngineUnavailable, match="failed"):
            client.submit([1], params())
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("refuse", "the model file is no good"),
        ("die", "ended with status 7"),
    ],
)
async def test_a_start_that_fails_says_why(kind: str, sentence: str, directory: Path) -> None:
    client = make_client(kind)
    with pytest.raises(EngineStartError, match=sentence):
        await client.start(PATIENCE)
    await client.close()
    assert files(directory) == []


async def test_a_start_has_a_deadline_and_says_where_it_was() -> None:
    for seconds in (2, 20):  # the second where others have kept it from loading for so long
        client = make_client("hang")
        with pytest.raises(EngineStartError, match=f"within {seconds} s") as error:
            await client.start(seconds)
        await asyncio.wait_for(client.close(), PATIENCE)
        if "(it was at: loading" in str(error.value):
            return
    pytest.fail(str(error.value))


async def test_a_program_that_is_not_there() -> None:
    launcher = functools.partial(LocalRanks, ("/no/such/program",))
    client = EngineClient(EngineOptions(model_path="x"), launcher=launcher)
    with pytest.raises(EngineStartError, match="can't be started"):
        await client.start(PATIENCE)
    await client.close()


async def test_phases_are_reported_with_their_seconds() -> None:
    reports: list[PhaseReport] = []
    client = make_client(on_phase=reports.append)
    await client.start(PATIENCE)
    await client.close()
    phases = ["loading the native module", "loading weights", "starting the engine"]
    assert [report.phase for report in reports if report.finished] == phases
    # Each is told when it begins, too: until then the one before is what a start is at.
    firsts = {report.phase: report for report in reversed(reports)}
    assert not any(report.finished for report in firsts.values())


async def test_a_drain_lets_streams_end(client: EngineClient) -> None:
    stream = client.submit([1], params(50))
    drained = asyncio.create_task(client.drain(PATIENCE))
    await asyncio.sleep(0)
    assert client.state == "draining"
    with pytest.raises(EngineUnavailable, match="shutting down"):
        client.submit([1], params())
    assert (await read(stream))[1].finish == "length"
    assert await drained is True


async def test_a_drain_aborts_at_its_deadline(client: EngineClient) -> None:
    stream = client.submit([1], params(90_000))
    assert await client.drain(0.1) is False
    _, last = await read(stream)
    assert (last.finish, last.error_code) == ("error", "shutting_down")
    assert client.num_live == 0


async def test_a_running_client_has_no_files(directory: Path) -> None:
    client = make_client()
    await client.start(PATIENCE)
    assert files(directory) == []
    await client.close()


def files(directory: Path) -> list[Path]:
    return list(directory.iterdir())


@pytest.fixture(autouse=True)
def directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Where temporary files go: those of tests that run at the same time are none of ours."""
    tmp_path_factory.getbasetemp()  # not in there, for it stays
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)
