"""Pages with which an operator changes replicas."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from minisgl.engine.changes import Changes
from minisgl.engine.replicas import Replicas
from minisgl.sampling_params import SamplingParams
from minisgl.server import admin as pages
from tests.python.engine.paper_engines import PaperSite, PaperSuccessors, paper_replicas
from tests.python.server.conftest import Server, StartServer
from tests.python.server.conftest import events as data_of

KEY = {"authorization": "Bearer for operators"}


@dataclass
class Admin:
    server: Server
    site: PaperSite
    replicas: Replicas
    successors: PaperSuccessors

    async def ask(self, method: str, path: str, status: int = 200, body: Any = None) -> Any:
        """The events of a change, or the body of anything else."""
        answer = await self.server.http.request(
            method, f"/admin/replicas{path}", headers=KEY, json=body
        )
        assert answer.status_code == status, answer.text
        if answer.headers["content-type"].startswith("text/event-stream"):
            return [json.loads(data) for data in data_of(answer.text)]
        return answer.json()

    async def numbers(self) -> list[int]:
        return [one["number"] for one in (await self.ask("GET", ""))["replicas"]]


@pytest.fixture
async def admin(start_server: StartServer) -> AsyncIterator[Admin]:
    site = PaperSite(room=2)
    replicas = paper_replicas(site, 1)
    await replicas.start(None)
    successors = PaperSuccessors()
    changes = Changes(replicas, successors)
    options = {"admin_api_key": "for operators", "api_key": ("for clients",)}
    async with start_server(changes=changes, **options) as server:
        yield Admin(server, site, replicas, successors)
    await changes.close()
    await replicas.close()


async def test_replicas_are_shown_added_started_again_and_removed(admin: Admin) -> None:
    (shown,) = (await admin.ask("GET", ""))["replicas"]
    assert (shown["number"], shown["state"], shown["place"]) == (0, "ready", "paper")
    assert shown["stats"]["num_running"] == 0
    added = await admin.ask("POST", "")
    assert [event["state"] for event in added] == ["starting", "ready"]
    assert {event["replica"] for event in added} == {1}
    assert await admin.numbers() == [0, 1]
    stream = admin.replicas.submit([1], SamplingParams(max_tokens=5))
    again = [event["state"] for event in await admin.ask("POST", "/0/restart")]
    assert (again[0], again[-1]) == ("draining", "ready")
    removed = await admin.ask("DELETE", "/0?drain=0.5")
    assert removed[-1] == {"replica": 0, "state": "removed"}
    assert await admin.numbers() == [1]
    assert stream.id in admin.site.engines[1].requests


async def test_all_are_replaced_by_some_with_another_model(admin: Admin) -> None:
    (shown,) = (await admin.ask("GET", ""))["replicas"]
    assert (shown["model"], shown["revision"]) == ("paper", "")
    stream = admin.replicas.submit([1], SamplingParams(max_tokens=5))
    events = await admin.ask("POST", "/replace", body={"model": "parchment", "revision": "v2"})
    assert events[0] == {"state": "searching", "model": "parchment", "revision": "v2"}
    assert events[-1] == {"state": "replaced", "model": "parchment", "revision": "v2"}
    assert {event.get("replica") for event in events} == {None, 0, 1}  # the new one came first
    (shown,) = (await admin.ask("GET", ""))["replicas"]
    assert (shown["number"], shown["model"], shown["revision"]) == (1, "parchment", "v2")
    assert stream.id in admin.site.engines[1].requests
    # Without a name it is another revision of the same model.
    events = await admin.ask("POST", "/replace?drain=5", body={"revision": "v3"})
    assert events[-1] == {"state": "replaced", "model": "parchment", "revision": "v3"}


async def test_what_cannot_be_replaced_is_said(admin: Admin) -> None:
    (_, failed) = await admin.ask("POST", "/replace", body={"model": "none"})
    assert failed["state"] == "failed"
    assert failed["reason"] == "there is no model at 'none'; nothing has changed"
    for body, param in (
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"revison": "v2"}, "revison"),
        ({"model": "x" * 5000}, "model"),
    ):
        assert (await admin.ask("POST", "/replace", 400, body))["error"]["param"] == param
    assert (await admin.ask("POST", "/replace?drain=x", 400, {}))["error"]["param"] == "drain"
    await admin.ask("POST", "/replace", 413, {"model": "x" * 100_000})
    admin.successors.found.clear()
    async with admin.server.http.stream(
        "POST", "/admin/replicas/replace", headers=KEY, json={"model": "parchment"}
    ) as first:
        assert first.status_code == 200
        refusal = (await admin.ask("POST", "/replace", 409, {"model": "papyrus"}))["error"]
        assert refusal["message"] == "All replicas are being replaced already."
    assert await admin.numbers() == [0]


async def test_a_change_that_is_silent_for_long_keeps_its_connection(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "QUIET_SECONDS", 0.01)
    admin.successors.found.clear()
    async with admin.server.http.stream(
        "POST", "/admin/replicas/replace", headers=KEY, json={"model": "none"}
    ) as answer:
        lines = answer.aiter_lines()
        while not (await anext(lines)).startswith(":"):
            pass
        admin.successors.found.set()
        assert "nothing has changed" in "".join([line async for line in lines])


async def test_what_cannot_be_done_is_said(admin: Admin) -> None:
    refusal = (await admin.ask("DELETE", "/0", 409))["error"]
    assert refusal["code"] == "replica_refused"
    assert refusal["message"].startswith("Replica 0 can't be removed: no other one serves")
    await admin.ask("POST", "")
    full = (await admin.ask("POST", "", 409))["error"]
    assert full["message"] == "All paper is written on."
    for number in ("7", "-1", "x", "9" * 5000):
        refusal = (await admin.ask("DELETE", f"/{number}", 404))["error"]
        assert refusal["code"] == "replica_not_found"
    for drain in ("x", "-1", "nan", "1e9"):
        assert (await admin.ask("DELETE", f"/0?drain={drain}", 400))["error"]["param"] == "drain"
    for method, path in (("DELETE", "/0"), ("POST", "/0/restart"), ("POST", "/replace")):
        mistyped = await admin.ask(method, f"{path}?drian=30", 400, {})
        assert mistyped["error"]["param"] == "drian"
    assert await admin.numbers() == [0, 1]


async def test_only_operators_have_the_key(admin: Admin, start_server: StartServer) -> None:
    http = admin.server.http
    for headers in ({}, {"authorization": "Bearer for clients"}):
        for method, path in (("GET", ""), ("POST", ""), ("DELETE", "/0"), ("POST", "/replace")):
            answer = await http.request(method, f"/admin/replicas{path}", headers=headers)
            assert answer.status_code == 401
    assert (await http.get("/v1/models", headers=KEY)).status_code == 401
    assert await admin.numbers() == [0]
    async with start_server() as without:
        assert (await without.http.get("/admin/replicas", headers=KEY)).status_code == 404


async def test_a_change_goes_on_where_its_client_is_gone(admin: Admin) -> None:
    async with admin.server.http.stream("POST", "/admin/replicas", headers=KEY) as answer:
        assert answer.status_code == 200
    while len(admin.site.engines) < 2:
        await admin.numbers()
    assert await admin.numbers() == [0, 1]
