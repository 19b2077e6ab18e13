"""Forms of answers over /v1/responses: the engine is told what it is for chat."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import reply

llguidance = pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


async def respond(server: Server, form: dict[str, Any]) -> Any:
    body = {"input": "hi", "text": {"format": form}}
    return await server.http.post("/v1/responses", json=body)


async def test_the_grammar_is_chat_s(server: Server) -> None:
    named = {"name": "n", "schema": SCHEMA, "strict": True}
    for here, chat in (
        ({"type": "json_schema", **named}, {"type": "json_schema", "json_schema": named}),
        ({"type": "json_object"}, {"type": "json_object"}),
        ({"type": "text"}, {"type": "text"}),
    ):
        answer = await respond(server, here)
        assert answer.status_code == 200, answer.text
        assert answer.json()["text"]["format"] == here
        await server.chat(response_format=chat)
        first, second = (stream.request.params.grammar for stream in server.engine.submitted)
        assert first == second
        assert (first is None) == (here["type"] == "text")
        server.engine.submitted.clear()


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar"}, "text.format.type"),
        ({"type": "json_schema", "name": "n"}, "text.format.schema"),
        ({"type": "json_schema", "name": "n", "schema": {"type": "no"}}, "text.format.schema"),
        ({"type": "json_schema", "name": "n", "schema": {"not": {}}}, "text.format.schema"),
    ],
)
async def test_refused_by_name(server: Server, form: dict[str, Any], param: str) -> None:
    refused = await respond(server, form)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert "response_format" not in refused.json()["error"]["message"]


class Answer(pydantic.BaseModel):
    """What the SDK parses."""

    a: int


async def test_the_sdk_parses(start_server: StartServer) -> None:
    async with start_server(reply('{"a": 5}')) as server, server.openai() as client:
        parsed = await client.responses.parse(model=MODEL, input="hi", text_format=Answer)
        assert parsed.output_parsed == Answer(a=5)
        async with client.responses.stream(model=MODEL, input="hi", text_format=Answer) as stream:
            final = await stream.get_final_response()
        assert final.output_parsed == Answer(a=5)
        assert all(one.request.params.grammar for one in server.engine.submitted)
