"""The board: samples of what /metrics says, the latest refusals, and their stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from minisgl.ipc.messages import EngineStats
from minisgl.server.board import KEPT, MESSAGE_CHARS, REFUSALS_KEPT, WINDOW, Board
from minisgl.server.histogram import Histogram
from minisgl.server.metrics import Metrics
from tests.python.server.conftest import Server, StartServer
from tests.python.server.fake_engine import FakeClient, reply


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client() -> FakeClient:
    return FakeClient(reply("Hello"))


def test_a_sample_has_rates_since_the_one_before(clock: Clock, client: FakeClient) -> None:
    metrics = Metrics()
    board = Board(metrics, client, clock)
    metrics.prompt_tokens, metrics.generation_tokens = 100, 40
    client.stats = EngineStats(prefix_queries=500, prefix_hits=325, host_hits=80)
    clock.now += 2
    board.sample()
    (sample,) = board.samples
    assert (sample.time, sample.prompt_rate, sample.generation_rate) == (1002.0, 50, 20)
    assert (sample.device_hits, sample.host_hits) == (0.25, 0.2)
    clock.now += 2
    board.sample()
    assert board.samples[-1].generation_rate == 0
    assert board.samples[-1].device_hits is None


def test_an_engine_that_counts_from_0_again_is_no_loss(clock: Clock, client: FakeClient) -> None:
    board = Board(Metrics(), client, clock)
    client.stats = EngineStats(prefix_queries=10, prefix_hits=5)
    board.sample()
    assert board.samples[-1].device_hits is None


def test_percentiles_are_over_the_latest_samples(clock: Clock, client: FakeClient) -> None:
    metrics = Metrics()
    board = Board(metrics, client, clock)
    metrics.inter_token_latency.observe(0.02, 100)
    board.sample()
    sample = board.samples[-1]
    assert sample.first_token_p50 is None
    assert sample.token_p50 is not None
    assert sample.token_p99 is not None
    assert 0.01 < sample.token_p50 < sample.token_p99 <= 0.025
    for _ in range(WINDOW):
        board.sample()
    assert board.samples[-1].token_p50 is None


def test_memory_is_bounded(client: FakeClient) -> None:
    board = Board(Metrics(), client)
    for _ in range(KEPT + 5):
        board.sample()
    for number in range(REFUSALS_KEPT + 5):
        board.refuse("/v1/models", 404, "unknown", f"{number} " + "x" * 1000)
    assert (len(board.samples), len(board.refusals)) == (KEPT, REFUSALS_KEPT)
    assert len(board.refusals[-1].message) == MESSAGE_CHARS + 3


@pytest.mark.parametrize(
    ("share", "expected"), [(0.25, 0.5), (0.5, 1.0), (0.75, 1.5), (1.0, 2.0), (0.0, None)]
)
def test_a_quantile_lies_within_its_bucket(share: float, expected: float | None) -> None:
    histogram = Histogram((1.0, 2.0))
    assert histogram.quantile(share, [2, 2, 0]) == expected


def test_a_quantile_beyond_all_bounds_is_the_last(client: FakeClient) -> None:
    assert Histogram((1.0, 2.0)).quantile(0.5, [0, 0, 3]) == 2.0


async def board_events(server: Server) -> AsyncGenerator[tuple[str, Any], None]:
    async with server.http.stream("GET", "/ui/board") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            kind, _, value = line.partition(": ")
            if kind == "event":
                name = value
            elif kind == "data":
                yield name, json.loads(value)


async def test_the_board_is_followed(server: Server) -> None:
    await server.chat(model="nobody's")
    server.state.board.sample()
    events = board_events(server)
    name, history = await anext(events)
    assert (name, len(history["samples"])) == ("history", 1)
    assert len(history["fields"]) == len(history["samples"][0])
    name, state = await anext(events)
    assert (name, state["state"], state["pages_total"]) == ("state", "ready", 100)
    assert state["tiers"]["host"] == {"pages": 90, "looked_for": 100, "found": 60}
    assert state["ranks"][0]["kv_cache_bytes"] == 1 << 20
    (refusal,) = state["refusals"]
    assert (refusal["status"], refusal["code"]) == (404, "model_not_found")
    assert refusal["route"] == "/v1/chat/completions"
    assert "nobody's" in refusal["message"]
    server.state.board.sample()
    assert (await anext(events))[0] == "sample"
    server.engine.state, server.engine.phase = "restarting", "loading weights"
    server.state.board.sample()
    assert (await anext(events))[0] == "sample"
    name, state = await anext(events)
    assert (name, state["phase"]) == ("state", "loading weights")


async def test_the_board_needs_the_key_and_keeps_clients_words_apart(
    start_server: StartServer,
) -> None:
    async with start_server(api_key=("one", "two")) as server:
        assert (await server.http.get("/ui/board")).status_code == 401
        server.http.headers["authorization"] = "Bearer two"
        await server.chat(model="a secret")
        events = board_events(server)
        await anext(events)
        _, state = await anext(events)
        assert [one["code"] for one in state["refusals"]] == ["model_not_found", "invalid_api_key"]
        assert "secret" not in json.dumps(state)


async def test_followers_are_bounded_and_a_head_is_none_of_them(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisgl.server.board_pages.MOST_FOLLOWERS", 1)
    head = await server.http.head("/ui/board")
    assert (head.status_code, head.content) == (200, b"")
    first = board_events(server)
    assert (await anext(first))[0] == "history"
    refused = await server.http.get("/ui/board")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "board_full")
    await first.aclose()
    for _ in range(500):  # until the server has noticed that the first is gone
        async with server.http.stream("GET", "/ui/board") as answer:
            if answer.status_code == 200:
                return
        await asyncio.sleep(0.01)
    raise AssertionError("nobody may follow any more")


async def test_samples_are_taken_until_the_server_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minisgl.server.board.SECONDS", 0.001)
    task = asyncio.create_task(server.state.board.run())
    names = []
    async for name, _ in board_events(server):
        names.append(name)
        if name == "sample":
            task.cancel()
    assert names[:3] == ["history", "state", "sample"]
