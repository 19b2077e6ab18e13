"""What reading tool calls out of an answer costs: an engine that computes nothing answers one
stream through the real server on one core.

    python bench/null_parsing.py [--parser hermes] [--rounds 101] [--answers calls] [--rates 8]

A round is the same chat twice, in turns: with a tool, so that the answer is parsed, and without,
when all of it is content. The answer is prose with some code, then calls with long arguments; what
arrives is checked. The engine sends 800 tokens a second, about an event each, then as many as
it can, which come in large pieces. The server's throughput is tokens per second of its processor
time: the engine, which has the other core with the client, may be what ends a stream's rate.

What else runs on the machine changes from second to second, and what a token costs with it by half.
So streams are short and many, a round's two directly follow each other, the first of which is each
in turn, and the ratio is the median of the rounds', parsed over not. Single rounds scatter by 10%
on a quiet machine: beside the median stands where it lies at 95% (by order statistics, which ask
nothing of how the rounds scatter). A run that can't tell 0.95 from 1.00 needs more rounds. The
other figures are medians, too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from null_engine import RATE_UNIT
from server_process import RunningServer, cores, pinned, serving
from sse_client import post, run_streams

from minisgl.model_files.source import resolve_model
from minisgl.tokenizer import Tokenizer, load_tokenizer

# What null_engine.py needs to know is said in ids of the default model's special tokens: a group of
# 1 request, and its rate. The rest of the prompt is the answer. The template reads no tools.
TEMPLATE = "<|im_start|>{{ rate }}{{ messages[-1]['content'] }}{# tools #}"
RATES = (8, 0)  # times RATE_UNIT; 0: as fast as the engine can
SECONDS = 0.5  # of a stream, at least
MOST = 30_000  # tokens/s that the engine can send, about
PROSE = """ A queue is a list whose items leave in the order in which they came. The loop below
takes the first one, and stops when there is none:

```python
while index < len(items) and items[index] is not None:
    index += 1  # {"this": "is no call"}
```

- It looks at each item once, so that it takes a time that grows with the list.
- It changes nothing: two readers may do it at once, "as often as they like".
"""
ARGUMENTS = json.dumps(
    {
        "path": "notes/queues.md",
        "append": True,
        "text": 'A queue is a list "of items", in order.\n' * 12,
    }
)
CALL = f'<tool_call>\n{{"name": "write_file", "arguments": {ARGUMENTS}}}\n</tool_call>\n'
ANSWERS = {"prose": PROSE, "calls": CALL}
TOOL = {"type": "function", "function": {"name": "write_file", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Figures:
    rate: float  # tokens/s, from the request to the end
    throughput: float  # tokens per second of the server's processor time
    cpu_per_event: float  # seconds of it
    tokens_per_event: float


class _Function(msgspec.Struct):
    name: str = ""
    arguments: str = ""


class _Call(msgspec.Struct):
    function: _Function


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] = []


class _Choice(msgspec.Struct):
    delta: _Delta


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


def measure(
    server: RunningServer, tokenizer: Tokenizer, answer: str, rate: int, *, tools: bool
) -> Figures:
    """One stream. Raises SystemExit when what arrives isn't what the engine sent."""
    length = len(tokenizer.encode(answer, add_special_tokens=False))
    times = math.ceil(SECONDS * (rate * RATE_UNIT or MOST) / length)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": answer}],
        "chat_template_kwargs": {"rate": tokenizer.decode([rate], skip_special_tokens=False)},
        "max_tokens": times * length,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0,
        **({"tools": [TOOL]} if tools else {}),
    }
    cpu = server.cpu_seconds()["server"]
    (stream,) = run_streams(server.url, [post(server.url, "/v1/chat/completions", body)], 1)
    cpu = server.cpu_seconds()["server"] - cpu
    events = stream.events()
    check([event.data for event in events], answer, times, called=tools and answer == CALL)
    count, seconds = times * length, events[-1].arrived - stream.sent
    return Figures(count / seconds, count / cpu, cpu / len(events), count / len(events))


def check(events: Sequence[bytes], answer: str, times: int, *, called: bool) -> None:
    """Raises SystemExit unless they hold the answer so many times, as calls or as content."""
    decode = msgspec.json.Decoder(_Chunk).decode
    deltas = [choice.delta for event in events for choice in decode(event).choices]
    calls = [call.function for delta in deltas for call in delta.tool_calls]
    arrived = (
        "".join(delta.content or "" for delta in deltas).strip(),
        "".join(call.arguments for call in calls),
        sum(bool(call.name) for call in calls),
    )
    expected = ("", times * ARGUMENTS, times) if called else ((times * answer).strip(), "", 0)
    if arrived != expected:
        raise SystemExit("what arrived is not what the engine sent")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Between which two of `values` the median of what they are drawn from lies at 95%: the number
    of draws below it is binomial with n and 1/2, here by its normal approximation.
    """
    ordered = sorted(values)
    below = max(0, math.floor((len(ordered) - 1.96 * math.sqrt(len(ordered))) / 2))
    return ordered[below], ordered[-1 - below]


def show(name: str, pairs: Sequence[tuple[Figures, Figures]]) -> None:
    def medians(part: str) -> tuple[float, float]:
        """Parsed and not."""
        on, off = (
            statistics.median(getattr(pair[side], part) for pair in pairs) for side in (0, 1)
        )
        return on, off

    ratios = [on.throughput / off.throughput for on, off in pairs]
    low, high = interval(ratios)
    (on, off), rates, each = map(medians, ("throughput", "rate", "tokens_per_event"))
    cost = [1e6 * seconds for seconds in medians("cpu_per_event")]
    print(
        f"{name}: {on:.0f} over {off:.0f} tokens per second of processor: "
        f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f} at 95%, {len(pairs)} rounds); "
        f"{1e6 / on:.1f} over {1e6 / off:.1f} us per token, "
        f"{cost[0]:.1f} over {cost[1]:.1f} per event; "
        f"{rates[0]:.0f} over {rates[1]:.0f} tok/s, {each[0]:.2f} and {each[1]:.2f} tokens/event",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parser", default="hermes", help="one that reads <tool_call>")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--answers", nargs="+", choices=ANSWERS, default=list(ANSWERS))
    parser.add_argument("--rates", nargs="+", type=int, choices=RATES, default=RATES)
    args = parser.parse_args()

    server_core, *others = cores()
    if not others:
        raise SystemExit("two cores are needed: one for the server, one for engine and client")
    os.sched_setaffinity(0, {others[0]})
    tokenizer = load_tokenizer(resolve_model(None).path)
    with tempfile.TemporaryDirectory() as directory:
        template = Path(directory) / "template.jinja"
        template.write_text(TEMPLATE)
        command = [sys.executable, str(Path(__file__).with_name("null_servers.py")), "minisgl"]
        command += ["--log", str(Path(directory) / "steps"), "--core", str(others[0])]
        command += ["--chat-template", str(template), "--tool-call-parser", args.parser]
        with serving(pinned(server_core, command)) as server:
            for name, rate in itertools.product(args.answers, args.rates):
                answer, pairs = ANSWERS[name], []
                for number in range(args.rounds + 1):
                    figures = {
                        tools: measure(server, tokenizer, answer, rate, tools=tools)
                        for tools in ((True, False) if number % 2 else (False, True))
                    }
                    if number:  # the first round is a warm-up
                        pairs.append((figures[True], figures[False]))
                show(f"{name}, {f'{rate * RATE_UNIT} tok/s' if rate else 'unlimited'}", pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
