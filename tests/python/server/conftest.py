"""The application over a scripted engine, under a real Hypercorn on a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
import uvloop

from minisgl.config import ServerArgs
from minisgl.engine.changes import Changes
from minisgl.server.addresses import Listener
from minisgl.server.app import create_app
from minisgl.server.listener import serve_http
from minisgl.server.state import ServerState
from minisgl.text.formats import AnswerFormats
from minisgl.text.frontend import TextFrontend
from tests.python.server.byte_tokenizer import make_tokenizer
from tests.python.server.fake_engine import FakeClient, Script, reply
from tests.python.waiting import PATIENCE

MODEL = "org/test-model"


@dataclass
class Server:
    """A running server and clients for it."""

    state: ServerState
    engine: FakeClient
    port: int
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def openai(self, **options: Any) -> openai.AsyncOpenAI:
        options = {"api_key": "none", "max_retries": 0, **options}
        return openai.AsyncOpenAI(base_url=self.url + "/v1", **options)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def chat(self, text: str = "hi", **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def complete(self, prompt: Any = "hi", **fields: Any) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"prompt": prompt, **fields})


def prompt(server: Server) -> str:
    """The text of the latest prompt, without special tokens."""
    ids = server.engine.submitted[-1].request.prompt
    return bytes(token for token in ids if token < 256).decode()


StartServer = Callable[..., contextlib.AbstractAsyncContextManager[Server]]


@contextlib.asynccontextmanager
async def running(
    script: Script | None = None,
    *,
    max_model_len: int = 256,
    max_live: int = 1000,
    sampling_defaults: Mapping[str, float] | None = None,
    changes: Changes | None = None,
    formats: AnswerFormats | None = None,
    template: str | None = None,
    **args: Any,
) -> AsyncIterator[Server]:
    engine = FakeClient(script or reply("Hello"), max_model_len=max_model_len, max_live=max_live)
    tokenizer = make_tokenizer() if template is None else make_tokenizer(template)
    text = TextFrontend(tokenizer, [], None)
    state = ServerState(
        args=ServerArgs(**args),
        client=engine,
        model_names=(MODEL, "alias"),
        text=text,
        sampling_defaults=sampling_defaults or {},
        changes=changes,
        formats=formats or AnswerFormats(),
    )
    listener = Listener.bind("127.0.0.1", 0)
    listener.listen()
    port = listener.port
    stop = asyncio.Event()
    task = asyncio.create_task(
        serve_http(create_app(state), listener, stop.wait, head_timeout=state.args.body_timeout)
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
            yield Server(state, engine, port, http)
    finally:
        stop.set()
        await task
        await text.close()


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the server runs on in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def start_server() -> StartServer:
    return running


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Says "Hello" to everything."""
    async with running() as server:
        yield server


def events(body: str) -> list[str]:
    """The data of each event of a stream."""
    assert body.endswith("\n\n")
    parts = body[:-2].split("\n\n")
    assert all(part.startswith("data: ") for part in parts)
    return [part.removeprefix("data: ") for part in parts]
