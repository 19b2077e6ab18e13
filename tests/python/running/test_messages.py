"""Calls and forms over /v1/messages of a running server with random weights."""

from __future__ import annotations

import json
from typing import Any

import httpx

from tests.python.launch.servers import DEADLINE
from tests.python.running.conftest import RunningServer
from tests.python.server.test_messages import events, put_together

SCHEMA = {
    "type": "object",
    "properties": {
        "zone": {"type": "string", "enum": ["UTC", "CET"]},
        "digits": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["zone", "digits"],
    "additionalProperties": False,
}
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What time is it?"}],
    "max_tokens": 400,
    "temperature": 1,
    "seed": 3,
}


async def test_a_forced_call_and_a_form(server: RunningServer) -> None:
    url = f"http://127.0.0.1:{server.port}/v1/messages"
    tool = {"name": "clock", "input_schema": SCHEMA}
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"tools": [tool], "tool_choice": {"type": "any"}}, "tool_use"),
        ({"output_config": form}, "end_turn"),
    ]
    async with httpx.AsyncClient(timeout=DEADLINE) as http:
        for fields, end in cases:
            for stream in (False, True):
                answer = await http.post(url, json={**ASKED, **fields, "stream": stream})
                assert answer.status_code == 200, answer.text
                message = put_together(events(answer.text)) if stream else answer.json()
                assert message["stop_reason"] == end
                for block in message["content"]:
                    given = block["input"] if end == "tool_use" else json.loads(block["text"])
                    assert given.keys() == {"zone", "digits"}
                    assert given["zone"] in ("UTC", "CET")
                    assert 0 <= given["digits"] <= 9
                counted = await http.post(url + "/count_tokens", json={**ASKED, **fields})
                usage = message["usage"]
                cached = usage["cache_read_input_tokens"]
                assert counted.json()["input_tokens"] == usage["input_tokens"] + cached
