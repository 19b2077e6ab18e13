"""What a request says of its turn, and what becomes of it on its way to the engine."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from minisgl.engine.admission import Admission
from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import EngineStats, Output, Standing, StepOutputs
from tests.python.server.conftest import Server, StartServer


async def test_a_session_is_what_a_header_or_else_the_user_says(server: Server) -> None:
    for session in (None, "one", "y" * 5000, ""):
        headers = {} if session is None else {"x-session-id": session}
        body = {"prompt": "hi", "user": "somebody"}
        assert (await server.http.post("/v1/completions", json=body, headers=headers)).is_success
    await server.complete("hi")
    sessions = [stream.session for stream in server.engine.submitted]
    assert sessions == ["somebody", "one", "y" * 256, "somebody", None]


def standings(server: Server) -> list[Standing]:
    return [stream.request.standing for stream in server.engine.submitted]


async def test_priority_and_user_reach_the_engine(server: Server) -> None:
    for fields in ({}, {"priority": -3}, {"priority": "4", "user": "ann"}, {"user": "bob"}):
        assert (await server.chat(**fields)).status_code == 200
        assert (await server.complete(**fields)).status_code == 200
    chats, completions = standings(server)[::2], standings(server)[1::2]
    assert chats == completions
    nobody, urgent, ann, bob = chats
    assert nobody == Standing()
    assert urgent == Standing(priority=-3)
    assert ann == Standing(priority=4, user=ann.user)
    assert bob == Standing(user=bob.user)
    assert len({nobody.user, ann.user, bob.user}) == 3


async def test_a_user_that_is_no_text_is_nobody(server: Server) -> None:
    for user in (None, "", 0, {"id": 3}, ["a"]):
        assert (await server.chat(user=user)).status_code == 200
    assert set(standings(server)) == {Standing()}


@pytest.mark.parametrize("priority", [-101, 101, 2**63, 0.5, "soon"])
async def test_a_priority_out_of_its_range_is_refused(server: Server, priority: object) -> None:
    for answer in (await server.chat(priority=priority), await server.complete(priority=priority)):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "priority"


async def test_shares_are_api_keys_and_nobody_goes_before_strangers(
    start_server: StartServer,
) -> None:
    async with start_server(api_key=("one", "two")) as server:
        for key in ("two", "one"):
            server.http.headers["Authorization"] = f"Bearer {key}"
            for priority in (-5, 5):
                assert (await server.chat(priority=priority)).status_code == 200
        assert standings(server) == [
            Standing(share=1),
            Standing(share=1, priority=5),
            Standing(share=0),
            Standing(share=0, priority=5),
        ]
    async with start_server(api_key=("one",)) as server:
        server.http.headers["Authorization"] = "Bearer one"
        assert (await server.chat(priority=-5)).status_code == 200
        assert standings(server) == [Standing(priority=-5)]


async def test_a_key_that_fills_the_queue_keeps_no_other_out(start_server: StartServer) -> None:
    async with start_server(api_key=("one", "two")) as server:
        requests = LiveRequests(Admission(4))  # and none that run
        requests.attach(lambda message: True)

        def submit(*asked: Any) -> TokenStream:
            return requests.submit(server.engine, *asked[:-1])  # all but the session

        server.engine.submit = submit  # type: ignore[method-assign]

        def ask(key: str) -> asyncio.Task[httpx.Response]:
            body = {"prompt": "hi", "max_tokens": 1}
            headers = {"Authorization": f"Bearer {key}"}
            return asyncio.create_task(
                server.http.post("/v1/completions", json=body, headers=headers)
            )

        waiting = [ask("one") for _ in range(4)]
        while len(requests) < 4:
            await asyncio.sleep(0.001)
        refused = await ask("one")
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        waiting.append(ask("two"))
        while len(requests) < 5:
            await asyncio.sleep(0.001)
        refused = await ask("two")  # the reserve is one request here
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        outputs = [Output(number, [5], "length") for number in range(5)]
        requests.dispatch(StepOutputs(outputs, EngineStats()))
        assert {(await answer).status_code for answer in waiting} == {200}
