"""Streams of a server in a Ray cluster, and what runs there."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.python.launch import servers
from tests.python.launch.servers import Stream, alive, get, is_called, processes, until
from tests.python.running.test_replicas import changed, shown

PROMPTS = [[5 + number, 6, 7] for number in range(6)]
TOKENS = 1000
DRAWN = {"temperature": 0.8, "seed": 7, "frequency_penalty": 0.3}  # every second one


def text_of(stream: Stream) -> str:
    """All text of a stream that ended well. Its lines may have characters that end lines in it."""
    stream.join()
    assert stream.events[-1] == "data: [DONE]", stream.events[-3:]
    chunks = [json.loads(event.removeprefix("data: ")) for event in stream.events[:-1]]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def ranks_of_actors() -> list[int]:
    """Rank processes whose parent is an actor of ours. Other tests may have ranks, too."""
    ranks = [pid for pid in processes() if is_called(pid, "minisgl-TP0-scheduler-R")]
    return [rank for rank in ranks if is_called(parent(rank), "RankHost")]


def ready_replicas(port: int) -> int:
    ready: int = get(port, "/ready")[1].get("replicas", {}).get("ready", 0)
    return ready


def replicas_are_back(port: int, *gone: int) -> bool:
    """Whether two serve, and none of those processes is left."""
    return not any(map(alive, gone)) and len(ranks_of_actors()) == 2 and ready_replicas(port) == 2


def parent(pid: int) -> int:
    return int(processes().get(pid, ("", "0"))[1])


def begin(port: int) -> list[Stream]:
    return [
        Stream(port, prompt, TOKENS, ignore_eos=True, **(DRAWN if number % 2 else {}))
        for number, prompt in enumerate(PROMPTS)
    ]


def texts_now(port: int) -> list[str]:
    """What the streams say of the model that is served."""
    return [text_of(stream) for stream in begin(port)]


@contextlib.contextmanager
def load(port: int) -> Iterator[list[list[str]]]:
    """Streams, one batch after the other, to the end of the block: their texts, once it is over."""
    texts: list[list[str]] = []
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            texts.append(texts_now(port))

    loading = threading.Thread(target=run, daemon=True)
    loading.start()
    until(lambda: sum(one["num_live"] for one in shown(port)) > 0)
    try:
        yield texts
    finally:
        over.set()
        loading.join(servers.DEADLINE)
    assert not loading.is_alive()
    assert texts


def of_one_revision(texts: list[list[str]], old: list[str], new: list[str]) -> None:
    """Each stream is wholly of one revision, and there were some of the old one."""
    assert not set(old) & set(new)
    for batch in texts:
        for text, one, two in zip(batch, old, new, strict=True):
            assert text in (one, two)
    assert set(sum(texts, [])) & set(old)


def replaced(port: int, model: Path) -> dict[str, Any]:
    """The last event of a roll to this model."""
    return changed(port, "POST", "/replace", {"model": str(model)})
