"""Forms of answers in requests: what the engine is told, and what a client is told."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.python.server.conftest import Server

llguidance = pytest.importorskip("llguidance")

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def told(server: Server) -> list[str | None]:
    """The grammars that the engine was asked for since the last call."""
    grammars = [stream.request.params.grammar for stream in server.engine.submitted]
    server.engine.submitted.clear()
    return grammars


def json_schema(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, **fields}}


async def test_all_names_of_a_form_make_the_same_grammar(server: Server) -> None:
    forms: list[dict[str, Any]] = [
        {"response_format": json_schema(SCHEMA)},
        {"response_format": json_schema(SCHEMA, strict=True, description="x")},
        {"response_format": {"type": "json_object", "schema": SCHEMA}},
        {"structured_outputs": {"json": SCHEMA}},
        {"guided_json": SCHEMA},
    ]
    seen = set()
    for form in forms:
        for answer in (await server.chat(**form), await server.complete(**form)):
            assert answer.status_code == 200, (form, answer.text)
        grammars = told(server)
        assert len(grammars) == 2
        seen.update(grammars)
    assert len(seen) == 1
    assert SCHEMA.items() <= json.loads(seen.pop() or "")["grammars"][0]["json_schema"].items()


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ({"response_format": {"type": "json_object"}}, '"type": "object"'),
        ({"guided_regex": "a+"}, "a+"),
        ({"structured_outputs": {"regex": "a+"}}, "a+"),
        ({"guided_choice": ["yes", "no"]}, "yes"),
        ({"guided_grammar": 'root ::= "xy"'}, "xy"),
        ({"structured_outputs": {"grammar": 'start: "xy"'}}, "xy"),
        ({"guided_json": {}, "guided_whitespace_pattern": "~*"}, "~*"),
        ({"structured_outputs": {"json": "{}", "disable_any_whitespace": True}}, "flexible"),
    ],
)
async def test_forms(server: Server, form: dict[str, Any], part: str) -> None:
    answer = await server.complete(["a", "b"], n=2, **form)
    assert answer.status_code == 200, answer.text
    grammars = told(server)
    assert len(grammars) == 4
    assert len(set(grammars)) == 1
    assert part in (grammars[0] or "")


@pytest.mark.parametrize(
    "form",
    [
        {"response_format": {"type": "text"}},
        {"response_format": {}},
        {"response_format": None, "structured_outputs": None, "guided_json": None},
        {"guided_regex": "", "guided_choice": [], "guided_grammar": ""},
        {"guided_decoding_backend": "xgrammar"},
    ],
)
async def test_no_form(server: Server, form: dict[str, Any]) -> None:
    answer = await server.chat(**form)
    assert answer.status_code == 200, answer.text
    assert told(server) == [None]


async def test_a_refusal_is_openais_error(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await server.openai().chat.completions.create(
            model="alias",
            messages=[{"role": "user", "content": "hi"}],
            response_format=json_schema({"properties": {"x": {"uniqueItems": True}}}),  # type: ignore[arg-type]
        )
    assert refused.value.param == "response_format.json_schema.schema"
    assert refused.value.type == "invalid_request_error"
    assert "The JSON schema's keyword 'uniqueItems' (at '#/properties/x')" in str(refused.value)
    assert told(server) == []
