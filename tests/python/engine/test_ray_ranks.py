"""Replicas in a Ray cluster, as the server sees them: without Ray, but with everything else that
takes part. tests/python/ray has Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from minisgl import SamplingParams
from minisgl.engine import ray_cluster
from minisgl.engine.api import EngineStartError
from minisgl.engine.client import EngineClient
from minisgl.engine.ray_cluster import RayCluster, Wish
from minisgl.engine.ray_ranks import RayLot, RaySite
from minisgl.engine.revival import RestartPolicy
from minisgl.engine.served_model import ServedModel
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineOptions, NamedModel
from tests.python.engine import fake_keeper, fake_rank
from tests.python.launch.servers import make_model, processes
from tests.python.waiting import PATIENCE, until

RANK_COMMAND = (sys.executable, fake_rank.__file__)
TOKENS = 100
MODEL = ServedModel("", "a model")  # that of the wish


@pytest.fixture(autouse=True)
def keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "KEEPER_COMMAND", (sys.executable, fake_keeper.__file__))
    monkeypatch.setattr(ray_cluster, "FIRST_DELAY", 0.1)


def wish(model: Path, address: str = "ray") -> Wish:
    return Wish(
        address=address,
        model=str(model),
        revision=None,
        weights=True,
        ranks=1,
        cpus_per_rank=1,
        device="auto",
        command=RANK_COMMAND,
    )


@contextlib.asynccontextmanager
async def serving(
    model: Path,
) -> AsyncIterator[tuple[RayLot, EngineClient, Callable[[], list[int]]]]:
    """With what lists the processes that serve: of keeper, actor and rank."""
    others = descendants(os.getpid())  # of other tests in this process
    cluster = RayCluster(wish(model))
    await cluster.open()
    lot = RaySite(cluster).take(3)
    client = EngineClient(
        lot.fit(EngineOptions(model_path="", kv_host_bytes=3001)),
        launcher=lot.launcher(MODEL),
        restart=RestartPolicy(first_delay=0.05),
    )
    try:
        info = await client.start(PATIENCE)
        assert info.host_bytes == 1501  # as there is a GPU for another replica
        yield lot, client, lambda: [p for p in descendants(os.getpid()) if p not in others]
    finally:
        await client.close()
        lot.give_back()
        await cluster.close()
    assert set(descendants(os.getpid())) <= set(others)


def descendants(of: int) -> list[int]:
    """Running processes below this one, each after its parent."""
    table = processes()
    found = [of]
    for pid in found:
        found += [
            child for child, (state, parent) in table.items() if int(parent) == pid and state != "Z"
        ]
    return found[1:]


def submit(client: EngineClient) -> TokenStream:
    return client.submit([5], SamplingParams(max_tokens=TOKENS, temperature=0.0))


async def tokens_of(stream: TokenStream) -> list[int]:
    output = await asyncio.wait_for(stream.next(whole=True), PATIENCE)
    assert output.error == ""
    return output.token_ids


async def test_a_replica_survives_its_rank_its_actor_and_its_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAKE_RANK_KIND", "any")
    expected = [(6 + number) % 1000 for number in range(TOKENS)]
    async with serving(make_model(tmp_path / "model")) as (lot, client, running):
        assert str(lot) == "Ray, 1 CPU and 1 GPU"
        assert await tokens_of(submit(client)) == expected
        for victim in (2, 1, 0):  # of keeper, actor, rank
            before = running()
            assert len(before) == 3
            asked = submit(client)
            asking = asyncio.create_task(tokens_of(asked))
            await until(lambda stream=asked: stream.received)  # type: ignore[misc]
            os.kill(before[victim], signal.SIGKILL)
            assert await asking == expected
            await until(lambda known=3 - victim: client.num_restarts == known)  # type: ignore[misc]
            await until(lambda: client.state == "ready")
            after = running()
            assert len(after) == 3
            assert before[:victim] == after[:victim]
            assert not set(before[victim:]) & set(after[victim:])
        assert client.num_restarts == 3
    assert "the engine process was killed by SIGKILL" in caplog.text
    assert "ended with its Ray actor: The actor died with status -9." in caplog.text
    assert "the Ray cluster is lost: the process that talks to Ray was killed" in caplog.text


async def test_an_actor_that_cannot_serve_ends_the_start_with_its_reason(tmp_path: Path) -> None:
    cluster = RayCluster(wish(tmp_path / "nowhere"))
    await cluster.open()
    lot = RaySite(cluster).take(0)
    client = EngineClient(EngineOptions(model_path=""), launcher=lot.launcher(MODEL))
    try:
        with pytest.raises(EngineStartError, match="The actor died with status 0"):
            await client.start(PATIENCE)
    finally:
        await client.close()
        await cluster.close()


async def test_the_next_group_of_an_actor_has_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever model the actor was placed for."""
    monkeypatch.setenv("FAKE_RANK_KIND", "any")
    monkeypatch.setenv("FAKE_RANK_NOTES", str(tmp_path / "notes"))
    first, second = (make_model(tmp_path / name) for name in ("first", "second"))
    successor = ServedModel(str(second), "second", named=NamedModel(str(second)))
    cluster = RayCluster(wish(first))
    await cluster.open()
    lot = RaySite(cluster).take(0)
    actors = set()
    try:
        for model in (successor, MODEL, successor, MODEL):
            client = EngineClient(EngineOptions(model_path=""), launcher=lot.launcher(model))
            try:
                await client.start(PATIENCE)
                actors.add(descendants(os.getpid())[1])
            finally:
                await client.close()
    finally:
        lot.give_back()
        await cluster.close()
    assert len(actors) == 1
    assert (tmp_path / "notes").read_text().split()[::2] == [str(second), str(first)] * 2


async def test_a_cluster_that_is_not_there_is_said(tmp_path: Path) -> None:
    cluster = RayCluster(wish(tmp_path, "ray://nowhere:1"))
    try:
        with pytest.raises(EngineStartError, match="--cluster ray://nowhere:1: no cluster is"):
            await cluster.open()
    finally:
        await cluster.close()
