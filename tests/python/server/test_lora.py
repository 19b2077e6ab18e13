"""Adapters behind the HTTP application: loaded, listed, chosen by `model`, unloaded."""

from __future__ import annotations

from tests.python.server.conftest import MODEL, StartServer

KEY = "admin"
HEADERS = {"authorization": f"Bearer {KEY}"}


async def test_load_and_unload(start_server: StartServer) -> None:
    async with start_server(admin_api_key=KEY) as server:
        load = {"lora_name": "sql", "lora_path": "/adapters/sql"}
        path = "/v1/load_lora_adapter"
        assert (await server.http.post(path, json=load)).status_code == 401
        answer = await server.http.post(path, json=load, headers=HEADERS)
        assert (answer.status_code, answer.text) == (
            200,
            "Success: LoRA adapter 'sql' added successfully.",
        )
        answer = await server.http.post(path, json=load, headers=HEADERS)
        assert answer.status_code == 400
        assert "'sql' is loaded already" in answer.json()["error"]["message"]
        broken = {"lora_name": "x", "lora_path": "/adapters/broken"}
        answer = await server.http.post(path, json=broken, headers=HEADERS)
        assert answer.status_code == 400
        assert "is broken" in answer.json()["error"]["message"]
        own = {"lora_name": MODEL, "lora_path": "/adapters/sql"}
        assert (await server.http.post(path, json=own, headers=HEADERS)).status_code == 400

        cards = (await server.http.get("/v1/models")).json()["data"]
        assert [(card["id"], card["parent"]) for card in cards] == [
            (MODEL, None),
            ("alias", None),
            ("sql", MODEL),
        ]
        assert cards[-1]["root"] == "/adapters/sql"
        assert (await server.http.get("/v1/models/sql")).json()["parent"] == MODEL

        answer = await server.chat(model="sql")
        assert answer.json()["model"] == "sql"
        assert server.engine.submitted[-1].request.params.adapter == 1
        for name in (MODEL, "alias"):
            assert (await server.chat(model=name)).json()["model"] == MODEL
            assert server.engine.submitted[-1].request.params.adapter == 0
        assert (await server.complete(model="sql")).json()["model"] == "sql"
        assert server.engine.submitted[-1].request.params.adapter == 1

        path = "/v1/unload_lora_adapter"
        answer = await server.http.post(path, json={"lora_name": "sql"}, headers=HEADERS)
        assert answer.status_code == 200
        answer = await server.http.post(path, json={"lora_name": "sql"}, headers=HEADERS)
        assert answer.status_code == 404
        assert (await server.chat(model="sql")).status_code == 404


async def test_other_apis_choose_an_adapter(start_server: StartServer) -> None:
    async with start_server() as server:
        await server.engine.load_adapter("sql", "/adapters/sql")
        messages = [{"role": "user", "content": "hi"}]
        for path, body in [
            ("/v1/responses", {"input": "hi"}),
            ("/v1/messages", {"messages": messages, "max_tokens": 5}),
            ("/api/chat", {"messages": messages, "stream": False}),
            ("/api/generate", {"prompt": "hi", "stream": False}),
        ]:
            answer = await server.http.post(path, json={"model": "sql", **body})
            assert (answer.status_code, answer.json()["model"]) == (200, "sql"), path
            assert server.engine.submitted[-1].request.params.adapter == 1, path
        answer = await server.http.post(
            "/api/chat", json={"model": "sql:latest", "messages": messages, "stream": False}
        )
        assert answer.status_code == 200
        assert server.engine.submitted[-1].request.params.adapter == 1
        names = [one["name"] for one in (await server.http.get("/api/tags")).json()["models"]]
        assert "sql:latest" in names


async def test_nobody_loads_without_the_admin_key(start_server: StartServer) -> None:
    async with start_server() as server:
        answer = await server.http.post(
            "/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/x"}
        )
        assert answer.status_code == 404
