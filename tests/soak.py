"""Thousands of random requests, many of them given up by their clients, against a real server over
a small random model; afterwards the server and its engine must hold what they held before.

    python tests/soak.py --requests 10000

Prints what is held before and after, and ends with status 1 where something stayed behind.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.python.launch.servers import ServerProcess  # noqa: E402
from tests.python.running.measures import gauges, process_size, until_idle  # noqa: E402
from tests.python.running.tiny_model import make_tiny_model  # noqa: E402

CONCURRENCY = 48  # more than the server may run, so that requests wait and are preempted
FLAGS = ("--max-model-len", "2048", "--kv-cache-tokens", "16K", "--max-running", "24")
ANSWER_SECONDS = 60.0
MAX_GROWTH = 16 * 2**20  # bytes of resident memory of each process: 1.6 KB a request of 10,000


@dataclass(frozen=True)
class Held:
    """What is held while no request is live."""

    tasks: int
    server_files: int
    engine_files: int
    engine_threads: int
    server_resident: int  # bytes
    engine_resident: int

    def left_over(self, before: Held) -> list[str]:
        """What there is more of than before."""
        found = [
            f"{name}: {getattr(before, name)} before, {getattr(self, name)} after"
            for name in ("tasks", "server_files", "engine_files", "engine_threads")
            if getattr(self, name) > getattr(before, name)
        ]
        for name in ("server_resident", "engine_resident"):
            growth = getattr(self, name) - getattr(before, name)
            if growth > MAX_GROWTH:
                found.append(f"{name}: {growth / 2**20:.1f} MiB more")
        return found


def random_request(choose: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body; one in twenty is bad."""
    body: dict[str, Any] = {
        "max_tokens": choose.choice([1, 5, 30, 200]),
        "stream": choose.random() < 0.7,
        "n": choose.choice([1, 1, 1, 2, 4]),
        "temperature": choose.choice([0, 0.7, 2]),
        "ignore_eos": choose.random() < 0.5,
    }
    for name, values in {
        "seed": [1, 2**63],
        "top_k": [1, 40],
        "top_p": [0.1, 0.9],
        "min_p": [0.05],
        "repetition_penalty": [1.2],
        "frequency_penalty": [-1.0, 1.0],
        "stop": ["a", ["e", "zz"]],
        "stop_token_ids": [[5, 6]],
        "logit_bias": [{"7": 5.0, "8": -100}],
    }.items():
        if choose.random() < 0.2:
            body[name] = choose.choice(values)
    if choose.random() < 0.05:
        body |= choose.choice([{"temperature": -1}, {"colour": 1}, {"max_tokens": 10**6}])
    length = choose.choice([1, 20, 150, 800])
    if choose.random() < 0.5:
        content = "".join(choose.choices("abc defé 你\n", k=length))
        if choose.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": 3}
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": content}]}
    if choose.random() < 0.2:
        body |= {"logprobs": 2, "echo": True}
    return "/v1/completions", {**body, "prompt": choose.choices(range(256), k=length)}


async def one_client(port: int, choose: random.Random) -> str:
    """Sends one request and reads its answer, or gives up somewhere. Returns how it went."""
    path, body = random_request(choose)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    ending = choose.choices(
        ["read", "leave while it waits", "leave in the answer", "leave in the request"],
        [60, 15, 20, 5],
    )[0]
    try:
        if ending == "leave in the request":
            writer.write(data[: choose.randrange(len(data))])
            await asyncio.sleep(choose.random() * 0.02)
            return ending
        writer.write(data)
        if ending == "leave while it waits":
            await asyncio.sleep(choose.random() * 0.05)
            return ending
        if ending == "leave in the answer":
            await asyncio.wait_for(reader.read(choose.choice([1, 2000])), ANSWER_SECONDS)
            return ending
        answer = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
        check_answer(answer, body)
        return f"status {answer[9:12].decode()}"
    finally:
        if choose.random() < 0.3:  # a reset instead of an orderly end
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def check_answer(answer: bytes, body: dict[str, Any]) -> None:
    status = answer[9:12]
    assert status in (b"200", b"400"), answer[:500]
    if status == b"200" and body["stream"]:
        assert answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n"), answer[-500:]


async def many_clients(port: int, count: int, choose: random.Random) -> collections.Counter[str]:
    """`count` clients, CONCURRENCY at a time."""
    numbers = iter(range(count))
    endings: collections.Counter[str] = collections.Counter()

    async def work() -> None:
        for _ in numbers:
            endings[await one_client(port, choose)] += 1

    await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return endings


def held(server: ServerProcess, port: int) -> Held:
    """Once everything is idle; the least that is seen within a second, as sockets need a moment
    to go.
    """
    until_idle(port)
    (engine,) = server.ranks()
    seen = []
    for _ in range(10):
        time.sleep(0.1)
        own, other = process_size(server.process.pid), process_size(engine)
        seen.append(
            Held(
                int(gauges(port)["num_tasks"]),
                own.num_files,
                other.num_files,
                other.num_threads,
                own.resident,
                other.resident,
            )
        )
    return min(seen, key=lambda one: (one.tasks, one.server_files, one.server_resident))


def soak(model: Path, folder: Path, num_requests: int, seed: int = 0) -> list[str]:
    """What stayed behind after `num_requests` requests, and what the server's screen had to say."""
    server = ServerProcess(model, folder, *FLAGS, program=("-m", "minisgl"))
    try:
        port = server.wait_ready()
        choose = random.Random(seed)
        # Caches, thread stacks and the allocator's arenas find their size first.
        asyncio.run(many_clients(port, max(300, num_requests // 5), choose))
        before = held(server, port)
        began = time.monotonic()
        endings = asyncio.run(many_clients(port, num_requests, choose))
        print(f"{num_requests} requests in {time.monotonic() - began:.0f} s: {dict(endings)}")
        after = held(server, port)
        print(f"before: {before}\nafter:  {after}")
        assert sum(endings.values()) == num_requests
        server.signal(signal.SIGTERM)
        status = server.wait()
        lines = [line for line in server.lines if "ERROR" in line or "Traceback" in line]
        return [
            *after.left_over(before),
            *lines,
            *([f"the server ended with status {status}"] if status else []),
        ]
    finally:
        if server.process.poll() is None:
            server.end()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        model = make_tiny_model(Path(name) / "model")
        faults = soak(model, Path(name) / "tmp", args.requests, args.seed)
    print("\n".join(faults) or "nothing stayed behind")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
