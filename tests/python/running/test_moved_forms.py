"""Answers with a form, and calls of tools, go on at another replica where theirs is killed or
drained: what they say is what nobody would have disturbed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from minisgl.config import ServerArgs
from minisgl.engine.replica import Replica
from minisgl.engine.replicas import Replicas
from minisgl.ray.embedded import EmbeddedServer, post
from tests.python.launch.servers import is_called, processes
from tests.python.running.tiny_model import make_model_of
from tests.python.waiting import until

FORM = r"(\[[a-f]{20}\]){100}"
NOTE = {
    "name": "note",
    "parameters": {
        "type": "object",
        "properties": {"text": {"type": "string", "pattern": f"^{FORM}$"}},
        "required": ["text"],
        "additionalProperties": False,
    },
}
KINDS: dict[str, dict[str, Any]] = {
    "form": {"structured_outputs": {"regex": FORM}},
    "call": {"tools": [{"type": "function", "function": NOTE}], "tool_choice": "required"},
}
BEGUN = 20  # tokens


@pytest.fixture(params=["llama", "gpt_oss", "fp8"])
def model(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return make_model_of(request.param, tmp_path / "tiny")


async def ask(server: EmbeddedServer, kind: str, number: int) -> str:
    """A streamed answer: its text, or the argument of its call."""
    body = {
        "messages": [{"role": "user", "content": f"Number {number}."}],
        "seed": number,
        "stream": True,
        "parallel_tool_calls": False,
        **KINDS[kind],
    }
    async with post(server.app, "/v1/chat/completions", json.dumps(body).encode(), {}) as answer:
        events = "".join([text async for text in answer.texts()]).split("\n\n")
    text = arguments = finish = ""
    for event in events[:-2]:
        (choice,) = json.loads(event.removeprefix("data: "))["choices"]
        text += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", []):
            arguments += call["function"]["arguments"]
        finish = choice["finish_reason"] or finish
    if kind == "call":
        assert (text, finish) == ("", "tool_calls")
        (text,) = json.loads(arguments).values()
    else:
        assert finish == "stop"
    return text


async def ask_all(server: EmbeddedServer, kind: str) -> list[str]:
    return await asyncio.gather(*(ask(server, kind, number) for number in range(4)))


def busy(replicas: Replicas) -> Replica | None:
    """A replica that is amid an answer."""
    for replica in replicas.members:
        if any(len(stream.received) >= BEGUN for stream in replica.engine.requests.streams):
            return replica
    return None


def kill(replicas: Replicas, replica: Replica) -> None:
    own = str(os.getpid())
    ranks = [pid for pid, (_, parent) in processes().items() if parent == own]
    (rank,) = (pid for pid in ranks if is_called(pid, f"scheduler-R{replica.number}"))
    os.kill(rank, signal.SIGKILL)


def drain(replicas: Replicas, replica: Replica) -> None:
    replicas.retire(replica)
    replicas.evacuate(replica)
    replicas.admit(replica)


async def test_they_go_on_elsewhere(model: Path, caplog: Any) -> None:
    args = ServerArgs(
        model=str(model), device="cpu", replicas=2, num_threads=1, kv_cache_tokens=65536
    )
    server = await EmbeddedServer.start(args)
    replicas = server._engine
    assert isinstance(replicas, Replicas)
    try:
        for kind in KINDS:
            undisturbed = await ask_all(server, kind)
            assert all(re.fullmatch(FORM, text) for text in undisturbed), undisturbed
            assert len(set(undisturbed)) == len(undisturbed)
            for end in (drain, kill):
                caplog.clear()
                for _ in range(20):  # the answers may have come to an end before
                    await until(lambda: sum(one.state == "ready" for one in replicas.replicas) == 2)
                    reading = asyncio.ensure_future(ask_all(server, kind))
                    await until(lambda: busy(replicas) or reading.done())  # noqa: B023
                    if replica := busy(replicas):
                        end(replicas, replica)
                    assert await reading == undisturbed
                    if "requests go on elsewhere" in caplog.text:
                        break
                else:
                    raise AssertionError("no request went on elsewhere")
    finally:
        await server.close()
