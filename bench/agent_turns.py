"""Replays agents over HTTP: each turn has all that was said before it, and a tool's output of 1k
tokens. How many prompt tokens are computed that needn't be?

    python bench/agent_turns.py [--agents 2] [--turns 12] [--output-tokens 1000]

The model (chain_model.py) answers with a thought and a call; its template leaves thoughts out of
what was said before the last user message. With `--roles user` each output is a user's message, so
each turn loses the thought before it; with `--roles tool` three of four are a tool's, and the
thoughts stay until the user speaks again. Both send answers back as their text. With `--roles call`
the client has parsed them, as agents do: thought and call come back in fields of their own. Agents
take turns, and share a system prompt.

Computed are a prompt's tokens less `cached_tokens` of its usage. New are those beyond the longest
beginning that its text shares with the text of any earlier prompt with its answer. Wanted: computed
over new 1.3, aim 1.05.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
from chain_model import CALL, CALL_END, FUNCTION, pages, write_chain_model
from server_process import serving

from minisgl.tokenizer import Tokenizer, load_tokenizer

SYSTEM = "You are an agent that reads files and says what stands in them. "
USER_EVERY = 4  # with tools' messages
ROLES = ["user", "tool", "call"]


@dataclass
class Counts:
    prompt: int = 0
    cached: int = 0
    new: int = 0
    answer: int = 0


@dataclass
class Agent:
    """A conversation so far."""

    number: int
    messages: list[dict[str, Any]] = field(default_factory=list)


class Replay:
    """Requests to one server, and the text of all that it has read and written."""

    def __init__(
        self, client: httpx.Client, tokenizer: Tokenizer, args: argparse.Namespace
    ) -> None:
        self.counts = Counts()
        self._client = client
        self._tokenizer = tokenizer
        self._args = args
        self._rng = random.Random(0)
        self._pages = tokenizer.encode(pages())
        self._known: list[bytes] = []

    def run(self) -> None:
        """All turns of all agents."""
        system = {"role": "system", "content": SYSTEM + self._output()}
        agents = [Agent(number, [system]) for number in range(self._args.agents)]
        for turn in range(self._args.turns):
            for agent in agents:
                from_user = self._args.roles == "user" or turn % USER_EVERY == 0
                role = "user" if from_user else "tool"
                agent.messages.append({"role": role, "content": self._output()})
                self._ask(agent, seed=100 * turn + agent.number)

    def _output(self) -> str:
        """A part of the pages that is so many tokens, or one or two more."""
        size = self._args.output_tokens
        start = self._rng.randrange(len(self._pages) - size)
        return self._tokenizer.decode(self._pages[start : start + size])

    def _ask(self, agent: Agent, seed: int) -> None:
        answer = self._client.post(
            "/v1/chat/completions",
            json={
                "messages": agent.messages,
                "max_tokens": 2000,
                "temperature": 1.0,
                "seed": seed,
                "return_token_ids": True,
            },
        )
        answer.raise_for_status()
        said: dict[str, Any] = answer.json()
        choice = said["choices"][0]
        content: str = choice["message"]["content"]
        if not content.startswith("<think>") or not content.endswith(CALL_END):
            raise SystemExit(f"this is no answer of the model's: {content!r:.200}")
        message: dict[str, Any] = {"role": "assistant", "content": content}
        agent.messages.append(parsed(message) if self._args.roles == "call" else message)
        self._count(said["usage"], said["prompt_token_ids"], choice["token_ids"])

    def _count(self, usage: dict[str, Any], prompt: list[int], answer: list[int]) -> None:
        tokens = [self._tokenizer.token_bytes(token_id) for token_id in prompt]
        text = b"".join(tokens)
        shared = max((num_shared(text, known) for known in self._known), default=0)
        self.counts.new += sum(end > shared for end in accumulate(map(len, tokens)))
        self.counts.prompt += usage["prompt_tokens"]
        self.counts.cached += usage["prompt_tokens_details"]["cached_tokens"]
        self.counts.answer += usage["completion_tokens"]
        self._known.append(text + b"".join(map(self._tokenizer.token_bytes, answer)))


def parsed(message: dict[str, Any]) -> dict[str, Any]:
    """An answer of the model's as agents keep it."""
    thought, _, called = message["content"].removeprefix("<think>").partition("</think>")
    arguments = CALL[CALL.rindex("{") :] + called[len(CALL) : -len(CALL_END)] + '"}'
    function = {"name": FUNCTION, "arguments": arguments}
    call = {"id": "call-1", "type": "function", "function": function}
    return {**message, "content": None, "reasoning_content": thought, "tool_calls": [call]}


def num_shared(one: bytes, other: bytes) -> int:
    """Bytes that both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def replay(model: str, args: argparse.Namespace, *flags: str) -> Counts:
    """What a server with these flags computes."""
    command = [sys.executable, "-m", "minisgl", f"--model={model}", "--kv-cache-tokens=65536"]
    command += ["--reasoning-parser=none"]  # the client takes answers apart
    with serving([*command, *flags]) as server, httpx.Client(base_url=server.url) as client:
        client.timeout = httpx.Timeout(600)
        one = Replay(client, load_tokenizer(model), args)
        one.run()
        return one.counts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--agents", type=int, default=2)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--output-tokens", type=int, default=1000)
    parser.add_argument("--roles", choices=ROLES, nargs="+", default=ROLES)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        write_chain_model(Path(folder))
        for roles in args.roles:
            args.roles = roles
            for name, flags in (
                ("as it is", []),
                ("answers not remembered", ["--answer-memory-bytes=0"]),
            ):
                counts = replay(folder, args, *flags)
                computed = counts.prompt - counts.cached
                print(
                    f"outputs by {roles}, {name}: {counts.prompt} prompt tokens, {computed} "
                    f"computed, {counts.new} new; {counts.answer} generated; computed over new "
                    f"{computed / counts.new:.3f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
