"""The two servers that null_serving.py and null_parsing.py measure.

python null_servers.py minisgl --port PORT --log LOG --core CORE     minisgl with null_engine.py
    [--chat-template FILE] [--tool-call-parser NAME]
python null_servers.py bare --port PORT                              Hypercorn and nothing else
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from hypercorn.asyncio import serve
from hypercorn.config import Config
from server_process import pinned

from minisgl.config import ServerArgs
from minisgl.launch import launch_server

# An event like those of a completion with one token.
EVENT = (
    b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
    b'"created":1700000000,"model":"SmolLM2-135M-Instruct","choices":'
    b'[{"index":0,"text":" token","logprobs":null,"finish_reason":null}]}\n\n'
)


async def bare_app(scope: Any, receive: Any, send: Any) -> None:
    """Answers POST {"max_tokens": N} with N events, a write for each and one each turn of the
    loop, so that all streams advance together.
    """
    if scope["type"] != "http":
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for _ in range(msgspec.json.decode(body)["max_tokens"] if body else 0):
        await send({"type": "http.response.body", "body": EVENT, "more_body": True})
        await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def serve_bare(port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.errorlog = None
    await serve(bare_app, config)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("minisgl", "bare"))
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log")
    parser.add_argument("--core", type=int, default=0, help="where the null engine runs")
    parser.add_argument("--chat-template")
    parser.add_argument("--tool-call-parser", default="auto")
    args = parser.parse_args()
    if args.kind == "bare":
        uvloop.run(serve_bare(args.port))
        return 0
    engine = [sys.executable, str(Path(__file__).with_name("null_engine.py")), args.log]
    served = ServerArgs(
        port=args.port,
        chat_template=args.chat_template,
        tool_call_parser=args.tool_call_parser,
    )
    return launch_server(served, rank_command=pinned(args.core, engine))


if __name__ == "__main__":
    sys.exit(main())
