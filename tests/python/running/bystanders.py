"""Clients that mind their own business while another one misbehaves: what they get must be, token
for token, what they get when they are alone. (On a GPU, where a product's last bits depend on how
many rows it has, as many tokens and the same end.)
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from minisgl import _native
from tests.python.launch.servers import DEADLINE, until

EXACT = _native.num_gpus() == 0

# (path, body): random and greedy, streamed and whole, one choice and several.
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "Tell me more."}],
            "seed": 7,
            "max_tokens": 300,
            "ignore_eos": True,
            "logprobs": True,
            "top_logprobs": 1,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    (
        "/v1/completions",
        {
            "prompt": [list(range(40)), [9, 8, 7]],
            "n": 2,
            "seed": 11,
            "max_tokens": 150,
            "ignore_eos": True,
            "logprobs": 0,
            "stream": True,
        },
    ),
    (
        "/v1/completions",
        {
            "prompt": "Once",
            "temperature": 0,
            "max_tokens": 200,
            "ignore_eos": True,
            "echo": True,
            "logprobs": 1,
        },
    ),
]


def folded(path: str, body: dict[str, Any], answer: bytes) -> Any:
    """An answer without its id, its time and what of its prompt was cached, however its tokens were
    spread over events. Unless EXACT also without what the tokens are.
    """
    choices, usage = unfolded(body, answer)
    if usage is not None:
        usage.pop("prompt_tokens_details", None)
    if EXACT:
        return choices, usage
    tokens = [
        choice["tokens"] if "tokens" in choice else choice["logprobs"]["tokens"]
        for choice in (choices.values() if isinstance(choices, dict) else choices)
    ]
    return [len(one) for one in tokens], usage


def unfolded(body: dict[str, Any], answer: bytes) -> tuple[Any, Any]:
    """Choices and usage, with all that they say."""
    if not body.get("stream"):
        whole = json.loads(answer)
        return whole["choices"], whole["usage"]
    events = answer.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], events[-3:]
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        usage = chunk.get("usage") or usage
        for part in chunk["choices"]:
            choice = choices.setdefault(part["index"], {"text": "", "tokens": [], "finish": None})
            choice["text"] += part.get("text") or part.get("delta", {}).get("content") or ""
            choice["finish"] = part["finish_reason"] or choice["finish"]
            if logprobs := part.get("logprobs"):
                choice["tokens"] += (
                    logprobs["content"]
                    if "content" in logprobs
                    else list(zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True))
                )
    return choices, usage


def first_difference(answer: Any, expected: Any, place: str = "") -> str:
    """Where two JSON values part, and what stands there."""
    if isinstance(answer, dict) and isinstance(expected, dict) and answer.keys() == expected.keys():
        pairs = [(key, answer[key], expected[key]) for key in answer]
    elif (
        isinstance(answer, list | tuple)
        and isinstance(expected, list | tuple)
        and len(answer) == len(expected)
    ):
        pairs = list(zip(range(len(answer)), answer, expected, strict=True))
    else:
        return f"{place or 'all'}: {str(answer)[:500]} instead of {str(expected)[:500]}"
    key, one, other = next(pair for pair in pairs if pair[1] != pair[2])
    return first_difference(one, other, f"{place}[{key!r}]")


def post(port: int, path: str, body: dict[str, Any]) -> Any:
    """The folded answer; its status is 200. The request is sent in one piece, as some servers of
    these tests give a body little time to follow its head.
    """
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as connection:
        connection.sendall(head.encode() + content)
        response = http.client.HTTPResponse(connection, method="POST")
        response.begin()
        answer = response.read()
    assert response.status == 200, answer
    return folded(path, body, answer)


@dataclass
class Bystander:
    """One of them: asks the same again and again."""

    port: int
    path: str
    body: dict[str, Any]
    expected: Any
    rounds: int = 0
    faults: list[str] = field(default_factory=list)

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set() and not self.faults:
            try:
                answer = post(self.port, self.path, self.body)
                if answer != self.expected:
                    self.faults.append(f"{self.path}: {first_difference(answer, self.expected)}")
            except Exception as error:
                self.faults.append(f"{self.path}: {error!r} in round {self.rounds}")
            self.rounds += 1


class Bystanders:
    """What a server answers to them alone, and the check that it goes on answering that."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._expected = [post(port, path, body) for path, body in REQUESTS]

    @contextlib.contextmanager
    def unharmed(self) -> Iterator[None]:
        """Streams run all the time that the block takes; each must be as if it were alone."""
        stop = threading.Event()
        bystanders = [
            Bystander(self._port, path, body, expected)
            for (path, body), expected in zip(REQUESTS, self._expected, strict=True)
        ]
        threads = [
            threading.Thread(target=one.run, args=(stop,), daemon=True) for one in bystanders
        ]
        for thread in threads:
            thread.start()
        try:
            until(lambda: all(one.rounds for one in bystanders))
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join(DEADLINE)
        faults = [fault for one in bystanders for fault in one.faults]
        if faults or any(thread.is_alive() for thread in threads):
            raise AssertionError("\n".join(faults) or "a stream did not end")
