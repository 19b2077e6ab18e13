"""Times chats of several turns over HTTP, each turn with all that was said before it.

    python bench/chat.py                    starts minisgl-serve with the prefix cache and without
    python bench/chat.py --peer URL         minisgl-serve beside any server of OpenAI's chat API
    python bench/chat.py --url URL          that server alone

--chats run side by side; a turn follows its answer at once. All share a system prompt. Answers have
--max-tokens tokens, greedy, where the server knows `ignore_eos`. The time is that of all chats.
Each round has other words, so that nothing of an earlier one is found. With --peer both servers
stay and answer the same rounds in turn; whoever is not asked must not work. --peer-pid also
compares processor time, which says more on a busy machine: with a thread each, as those that wait
for each other may spin.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from server_process import processor_seconds, serving
from shapes import add_model_arguments, server_command


@dataclass
class Totals:
    seconds: float = 0.0
    turns: list[float] = field(default_factory=list)  # seconds of each
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0


def words(rng: random.Random, count: int) -> str:
    return " ".join(
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 7)))
        for _ in range(count)
    )


async def chat(
    client: httpx.AsyncClient, number: int, round_number: int, args: argparse.Namespace
) -> Totals:
    rng = random.Random(f"{round_number} {number}")
    system = words(random.Random(round_number), args.system_words)
    messages: list[dict[str, str]] = [{"role": "system", "content": system}]
    totals = Totals()
    for _ in range(args.turns):
        messages.append({"role": "user", "content": words(rng, args.user_words)})
        body: dict[str, Any] = {
            "messages": messages,
            "max_tokens": args.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        start = time.perf_counter()
        answer = await client.post("/v1/chat/completions", json=body)
        totals.turns.append(time.perf_counter() - start)
        answer.raise_for_status()
        said = answer.json()
        usage = said["usage"]
        totals.prompt_tokens += usage["prompt_tokens"]
        totals.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        totals.new_tokens += usage["completion_tokens"]
        messages.append({"role": "assistant", "content": said["choices"][0]["message"]["content"]})
    return totals


async def all_chats(url: str, round_number: int, args: argparse.Namespace) -> Totals:
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:
        start = time.perf_counter()
        each = await asyncio.gather(
            *(chat(client, i, round_number, args) for i in range(args.chats))
        )
        return Totals(
            time.perf_counter() - start,
            [turn for one in each for turn in one.turns],
            sum(one.prompt_tokens for one in each),
            sum(one.cached_tokens for one in each),
            sum(one.new_tokens for one in each),
        )


def show(name: str, totals: Totals) -> None:
    print(
        f"{name:20s} {totals.seconds:7.2f} s, a turn {statistics.median(totals.turns):6.3f} s in "
        f"the median; {totals.prompt_tokens} prompt tokens, {totals.cached_tokens} of them cached, "
        f"{totals.new_tokens} new"
    )


def both_ways(args: argparse.Namespace) -> None:
    """Ours with the prefix cache and without."""
    ratios = []
    for number in range(args.rounds):
        seconds = {}
        for name, flags in (("with the cache", []), ("without", ["--disable-prefix-cache"])):
            with serving(server_command(args, f"--threads={args.threads}", *flags)) as server:
                totals = asyncio.run(all_chats(server.url, number, args))
                seconds[name] = totals.seconds
                show(name, totals)
        ratios.append(seconds["with the cache"] / seconds["without"])
    show_ratios("with over without", ratios)


def beside_peer(args: argparse.Namespace) -> None:
    """Ours and the peer's, round by round."""
    times, processor_times = [], []
    with serving(server_command(args, f"--threads={args.threads}")) as server:
        sides = [("ours", server.url, server.pid), ("the peer", args.peer, args.peer_pid)]
        short = argparse.Namespace(**{**vars(args), "chats": 1, "turns": 1})
        for _, url, _ in sides:  # both have begun to work before they are timed
            asyncio.run(all_chats(url, -1, short))
        for number in range(args.rounds):
            totals, worked = {}, {}
            for name, url, pid in sides if number % 2 else reversed(sides):
                before = processor_seconds(pid) if pid else 0.0
                totals[name] = asyncio.run(all_chats(url, number, args))
                worked[name] = processor_seconds(pid) - before if pid else 0.0
                show(name, totals[name])
            if totals["ours"].new_tokens != totals["the peer"].new_tokens:
                raise SystemExit("the peer made another number of tokens")
            times.append(totals["ours"].seconds / totals["the peer"].seconds)
            if args.peer_pid:
                processor_times.append(worked["ours"] / worked["the peer"])
    show_ratios("ours over the peer's, time", times)
    if args.peer_pid:
        show_ratios("processor time", processor_times)


def show_ratios(name: str, ratios: list[float]) -> None:
    shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
    print(f"{name}: {statistics.median(ratios):.3f} ({shown})")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    urls = parser.add_mutually_exclusive_group()
    urls.add_argument("--url", help="only this server")
    urls.add_argument("--peer", help="this server beside one that is started")
    parser.add_argument("--peer-pid", type=int, default=0, help="the peer's process")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--chats", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--system-words", type=int, default=100)
    parser.add_argument("--user-words", type=int, default=30)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    if args.url:
        for number in range(args.rounds):
            show(args.url, asyncio.run(all_chats(args.url, number, args)))
    elif args.peer:
        beside_peer(args)
    else:
        both_ways(args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
