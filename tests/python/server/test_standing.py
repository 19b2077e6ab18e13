"""What a request says of its turn, and what becomes of it on its way to the engine."""

from __future__ import annotations

import pytest

from minisgl.ipc.messages import Standing
from tests.python.server.conftest import Server, StartServer


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
