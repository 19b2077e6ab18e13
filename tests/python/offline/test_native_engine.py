"""NativeEngine keeps the contract of EngineApi over an engine that pretends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.ipc.messages import EngineOptions
from minisgl.offline.native_engine import NativeEngine
from minisgl.sampling_params import SamplingParams
from tests.python.offline.fake_native import MAX_MODEL_LEN, FakeEngine

LONG = SamplingParams(max_tokens=100, ignore_eos=True)


@pytest.fixture
def fake() -> FakeEngine:
    """Repeats the prompt, a token per millisecond."""
    fake = FakeEngine(lambda request: request["prompt"], {"max_model_len": 0, "max_running": 1})
    fake.on_take = lambda: time.sleep(0.001)
    return fake


@pytest_asyncio.fixture
async def engine(fake: FakeEngine) -> AsyncIterator[NativeEngine]:
    options = EngineOptions(model_path="", max_waiting=2)
    engine = NativeEngine(fake, options)  # type: ignore[arg-type]
    yield engine
    await engine.close()


async def test_a_request_gets_its_tokens_and_its_end(engine: NativeEngine) -> None:
    assert (engine.state, engine.info.max_model_len) == ("ready", MAX_MODEL_LEN)
    stream = engine.submit([5, 6], SamplingParams(max_tokens=5))
    output = await stream.next(whole=True)
    assert (output.token_ids, output.finish) == ([5, 6, 5, 6, 5], "length")
    assert engine.num_live == 0


async def test_more_than_fits_is_busy_until_one_ends(
    engine: NativeEngine, fake: FakeEngine
) -> None:
    streams = [engine.submit([5], LONG) for _ in range(3)]
    with pytest.raises(EngineBusy, match="3 requests"):
        engine.submit([5], LONG)
    engine.abort(streams[1].id)
    assert (await streams[1].next()).finish == "abort"
    while engine.num_live == 3:
        await asyncio.sleep(0)
    assert fake.aborted == [streams[1].id]
    engine.submit([5], LONG)


async def test_a_drain_lets_requests_end_and_refuses_others(engine: NativeEngine) -> None:
    stream = engine.submit([5], LONG)
    drained = asyncio.create_task(engine.drain(20))
    await asyncio.sleep(0)
    assert engine.state == "draining"
    with pytest.raises(EngineUnavailable, match="shutting down"):
        engine.submit([5], LONG)
    assert (await stream.next(whole=True)).finish == "length"
    assert await drained is True


async def test_a_drain_aborts_at_its_deadline(engine: NativeEngine) -> None:
    stream = engine.submit([5], LONG)
    assert await engine.drain(0.01) is False
    assert (await stream.next(whole=True)).error_code == "shutting_down"
    assert engine.num_live == 0


async def test_what_cannot_be_read_is_the_engines_end(
    engine: NativeEngine, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = engine.submit([5], LONG)
    monkeypatch.setattr(fake, "take_outputs", lambda: [(1,) * 20])  # no Output has so many fields
    output = await stream.next(whole=True)
    assert (output.finish, output.error_code) == ("error", "engine_failure")
    assert engine.state == "failed"
    assert "unexpected error while taking outputs" in engine.failure
    with pytest.raises(EngineUnavailable, match="failed"):
        engine.submit([5], LONG)
