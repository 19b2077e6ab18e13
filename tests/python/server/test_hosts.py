"""By which names the server may be addressed: without a key on loopback by none that a page on the
web could have (DNS rebinding).
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.python.server.conftest import StartServer
from tests.python.server.fake_engine import reply

OWN = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "::1", "box", "a.localhost."]
STRANGE = [
    "rebound.example",
    "rebound.example:8000",
    "127.0.0.1.nip.example",
    "x.localhost.example.",
    "1.2",
]


async def statuses(start_server: StartServer, names: list[str], **args: Any) -> list[int]:
    async with start_server(reply("Hello"), **args) as server:
        headers = {"authorization": "Bearer k"} if "api_key" in args else {}
        found = []
        for name in names:
            answer = await server.http.get("/v1/models", headers={**headers, "host": name})
            found.append(answer.status_code)
        return found


async def test_a_server_on_loopback_without_a_key_has_no_strange_names(
    start_server: StartServer,
) -> None:
    assert set(await statuses(start_server, OWN)) == {200}
    assert set(await statuses(start_server, STRANGE)) == {403}
    async with start_server(reply("Hello")) as server:
        for method, path in (("GET", "/"), ("GET", "/metrics"), ("POST", "/v1/completions")):
            answer = await server.http.request(
                method, path, headers={"host": "rebound.example"}, json={"prompt": "hi"}
            )
            assert answer.status_code == 403
            error = answer.json()["error"]
            assert error["code"] == "host_not_allowed"
            assert "'rebound.example'" in error["message"]
            assert "--allowed-hosts" in error["message"]
        assert server.engine.submitted == []


@pytest.mark.parametrize(
    "args",
    [{"api_key": ("k",)}, {"host": "0.0.0.0"}, {"uds": "/tmp/s"}, {"allowed_hosts": ("*",)}],
    ids=["key", "everywhere", "socket", "any"],
)
async def test_elsewhere_every_name_is_allowed(
    start_server: StartServer, args: dict[str, Any]
) -> None:
    assert set(await statuses(start_server, [*OWN, *STRANGE], **args)) == {200}


async def test_the_names_that_an_operator_allows(start_server: StartServer) -> None:
    args: dict[str, Any] = {"allowed_hosts": ("Models.example",), "api_key": ("k",)}
    names = ["models.example", "models.example:443", "localhost", "10.0.0.1", "other.example"]
    assert await statuses(start_server, names, **args) == [200, 200, 200, 200, 403]
    assert await statuses(start_server, ["www.models.example"], **args) == [403]
