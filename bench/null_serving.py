"""What the server itself costs: an engine that computes nothing answers N streams at once, through
the real server on one core.

    python bench/null_serving.py [--streams 256] [--rates 25000,60000,...]

For each offered rate: the tokens a second that arrived, how many of them an event carried, the
server's processor time for an event, and the latency that the server added to a token, from its
sending by the engine to its arrival at the client. The whole text of each stream is checked. Then
the same at half of the highest rate that the server kept up with, and as a ceiling Hypercorn
alone, one token a write. Engine and client run on the other core.
"""

from __future__ import annotations

import argparse
import array
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from null_engine import RATE_UNIT
from server_process import RunningServer, cores, pinned, serving
from sse_client import Received, post, run_streams

from minisgl.model_files.source import resolve_model
from minisgl.tokenizer import load_tokenizer

KEPT_UP = 0.98  # of the offered rate
NUM_WORDS = 256
TARGET_RATE, AIMED_RATE = 25_000, 60_000  # tokens/s
TARGET_P99, AIMED_P99 = 50, 20  # ms


class _Choice(msgspec.Struct):
    text: str


class _Chunk(msgspec.Struct):
    choices: list[_Choice]


@dataclass(frozen=True)
class Figures:
    offered: float  # tokens/s; 0: as fast as the engine can
    rate: float  # tokens/s, from the first token sent to the last one received
    tokens_per_event: float
    cpu_per_event: float  # seconds of the server's process
    latencies: list[float]  # seconds, a token each, sorted

    @property
    def kept_up(self) -> bool:
        return self.rate >= KEPT_UP * self.offered

    def percentile(self, share: float) -> float:
        """Milliseconds."""
        return 1e3 * self.latencies[min(int(share * len(self.latencies)), len(self.latencies) - 1)]

    def __str__(self) -> str:
        offered = f"{self.offered:9.0f}" if self.offered else "unlimited"
        return (
            f"{offered} {self.rate:10.0f} {self.tokens_per_event:12.2f}"
            f" {1e6 * self.cpu_per_event:12.1f}"
            f" {self.percentile(0.5):10.2f} {self.percentile(0.99):8.2f} {self.percentile(1):8.2f}"
        )


HEADER = (
    f"{'offered':>9} {'tok/s':>10} {'tokens/event':>12} {'CPU us/event':>12}"
    f" {'p50 ms':>10} {'p99 ms':>8} {'max ms':>8}"
)


def words() -> tuple[list[int], list[str]]:
    """Ids of tokens that are a space and a word, and their texts."""
    tokenizer = load_tokenizer(resolve_model(None).path)
    found = [
        (token_id, text)
        for token_id in range(1000, tokenizer.vocab_size)
        if (text := tokenizer.decode([token_id]))[0] == " " and text[1:].isalpha()
    ][:NUM_WORDS]
    return [token_id for token_id, _ in found], [text for _, text in found]


def measure(
    server: RunningServer, log: Path, num_streams: int, rate: float, seconds: float
) -> Figures:
    """One group of streams. Raises SystemExit when a text isn't as it should be."""
    ids, texts = words()
    steps = max(16, int(seconds * (rate or AIMED_RATE) / num_streams))
    body = {
        "prompt": [num_streams, round(rate / RATE_UNIT), *ids],
        "max_tokens": steps,
        "ignore_eos": True,
        "stream": True,
        "temperature": 0,
    }
    log.unlink(missing_ok=True)
    request = post(server.url, "/v1/completions", body)
    cpu = server.cpu_seconds()["server"]
    streams = run_streams(server.url, [request] * num_streams, num_streams)
    cpu = server.cpu_seconds()["server"] - cpu
    sent = array.array("d")
    while not log.exists():
        time.sleep(0.01)
    sent.frombytes(log.read_bytes())
    expected = "".join(texts[step % len(texts)] for step in range(steps))
    latencies: list[float] = []
    events, last = 0, 0.0
    for stream in streams:
        text, num_events, end = _token_latencies(stream, sent, latencies)
        if text != expected:
            raise SystemExit("a stream's text is not what the engine sent")
        events += num_events
        last = max(last, end)
    latencies.sort()
    tokens = num_streams * steps
    return Figures(rate, tokens / (last - sent[0]), tokens / events, cpu / events, latencies)


def _token_latencies(
    stream: Received, sent: array.array[float], latencies: list[float]
) -> tuple[str, int, float]:
    """Adds a stream's latencies; returns its text, events, and the time of the last."""
    decode = msgspec.json.Decoder(_Chunk).decode
    pieces: list[str] = []
    count, arrived = 0, 0.0
    events = stream.events()
    for arrived, data in events:
        text = decode(data).choices[0].text
        pieces.append(text)
        number = text.count(" ")
        latencies += [arrived - time_sent for time_sent in sent[count : count + number]]
        count += number
    return "".join(pieces), len(events), arrived


def measure_bare(server_core: int, num_streams: int, seconds: float) -> float:
    """Chunks a second through Hypercorn alone."""
    script = str(Path(__file__).with_name("null_servers.py"))
    with serving(pinned(server_core, [sys.executable, script, "bare"])) as server:
        steps = max(16, int(seconds * TARGET_RATE / num_streams))
        request = post(server.url, "/", {"max_tokens": steps})
        streams = run_streams(server.url, [request] * num_streams, num_streams)
        times = [stream.events() for stream in streams]
        first = max(events[0].arrived for events in times)  # until then connections are made
        counted = [event.arrived for events in times for event in events if event.arrived > first]
        return len(counted) / (max(counted) - first)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rates", default="30000,60000,120000,0")
    parser.add_argument("--seconds", type=float, default=8.0, help="for each rate")
    args = parser.parse_args()

    server_core, *others = cores()
    if not others:
        raise SystemExit("two cores are needed: one for the server, one for engine and client")
    os.sched_setaffinity(0, {others[0]})
    rates = [float(rate) for rate in args.rates.split(",")]
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "steps"
        script = str(Path(__file__).with_name("null_servers.py"))
        command = [sys.executable, script, "minisgl", "--log", str(log), "--core", str(others[0])]
        with serving(pinned(server_core, command)) as server:
            measure(server, log, args.streams, AIMED_RATE / 4, 1.0)  # warm-up
            print(f"{args.streams} streams, one core for the server\n{HEADER}", flush=True)
            kept = 0.0
            for rate in rates:
                figures = measure(server, log, args.streams, rate, args.seconds)
                print(figures, flush=True)
                if rate and figures.kept_up:
                    kept = max(kept, rate)
            print(
                f"highest rate that it kept up with: {kept:.0f} tok/s "
                f"(wanted {TARGET_RATE}, aim {AIMED_RATE}); at half of it, wanted "
                f"p99 {TARGET_P99} ms, aim {AIMED_P99} ms:"
            )
            if kept:
                half = [measure(server, log, args.streams, kept / 2, args.seconds) for _ in "123"]
                print(sorted(half, key=lambda figures: figures.percentile(0.99))[1])
    bare = measure_bare(server_core, args.streams, args.seconds)
    print(f"Hypercorn alone, one token a write: {bare:.0f} tok/s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
