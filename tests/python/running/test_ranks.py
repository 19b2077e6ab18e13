"""Servers of several ranks: the same text as one rank's, and every way in which a rank can end."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.python.launch.servers import DEADLINE, ServerProcess, Stream, alive, named_memory, until
from tests.python.running.conftest import PROGRAM
from tests.python.running.stalled_thread import stall_thread

KILL, STOP = signal.SIGKILL, signal.SIGSTOP
# Seconds within which a group ends once a rank is lost: twice what README says, as a test has only
# a part of the machine.
LIMIT = 20.0
LONG_PROMPT = [1 + number % 200 for number in range(4000)]  # prefill takes a while
GREEDY_TOKENS = 1500


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[ServerProcess]]:
    """Those that a test starts; whatever happened to them, nothing of them may be left."""
    started: list[ServerProcess] = []
    yield started
    for server in started:
        children = server.children()
        if server.process.poll() is None:
            server.signal(signal.SIGTERM)
            assert server.wait() == 0, server.output
        until(lambda children=children: not any(map(alive, children)))
        assert server.files() == []
        assert "Traceback" not in server.output
    assert named_memory() == []


def start(
    servers: list[ServerProcess],
    model: Path,
    folder: Path,
    *flags: str,
    program: Sequence[str] = PROGRAM,
) -> ServerProcess:
    directory = folder / f"server-{len(servers)}"
    server = ServerProcess(model, directory, *flags, program=program)
    servers.append(server)
    return server


def held(gate: Path) -> tuple[str, str]:
    """A server whose ranks begin once the gate is there: until then a test can harm them."""
    program = f"""
import sys
from minisgl import launch_server
from minisgl.engine.local_ranks import RANK_COMMAND
python, flag, code, module = RANK_COMMAND
wait = "import os, time\\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\\n"
sys.exit(launch_server(rank_command=(python, flag, wait + code, module)))
"""
    return ("-c", program)


def plan_memory(rank: int) -> Path:
    """What the process of a rank shares with the others for plans."""
    descriptors = Path(f"/proc/{rank}/fd").iterdir()
    return next(fd for fd in descriptors if "minisgl-plans" in os.readlink(fd))


def text_of(stream: Stream) -> str:
    """All text of a stream that ended well."""
    events = stream.join().splitlines()
    assert events[-1] == "data: [DONE]", events[-3:]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    return "".join(chunk["choices"][0]["text"] for chunk in chunks)


def greedy_texts(port: int, prompts: list[list[int]], max_tokens: int) -> list[str]:
    return [text_of(stream) for stream in [Stream(port, ids, max_tokens) for ids in prompts]]


def test_two_ranks_say_what_one_says(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path
) -> None:
    prompts = [[1 + index, 2, 3 + index] for index in range(6)] + [LONG_PROMPT]
    texts = []
    for size in ("1", "2"):
        server = start(servers, tiny_model, tmp_path, "--tp", size)
        texts.append(greedy_texts(server.wait_ready(), prompts, 64))
    assert texts[0] == texts[1]
    assert "ranks: 2 (--tp)" in servers[1].output
    assert "ranks talk through shared memory: all are on this host" in servers[1].output


def test_three_ranks_of_the_default_model_say_what_one_says(
    servers: list[ServerProcess], default_gguf: Path, tmp_path: Path
) -> None:
    # Sums in another order round another way, and blocks of 8 bits make that larger: the texts are
    # compared as far as there is no near tie ("The capital of France is").
    prompts = [[504, 3575, 282, 4649, 314]]
    texts = []
    for size in ("1", "3"):
        server = start(servers, default_gguf, tmp_path, "--tp", size)
        texts.append(greedy_texts(server.wait_ready(), prompts, 10))
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert texts[0] == texts[1]


def test_a_size_that_does_not_divide_the_model_ends_the_start_with_a_sentence(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path
) -> None:
    server = start(servers, tiny_model, tmp_path, "--tp", "3")
    assert server.wait() == 1
    assert server.lines[-1].startswith("minisgl-serve: error: rank ")
    assert "3" in server.lines[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_while_starting_ends_the_start(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path, rank: int
) -> None:
    server = start(
        servers, tiny_model, tmp_path, "--tp", "2", program=held(tmp_path / "never there")
    )
    until(lambda: len(server.ranks()) == 2)
    os.kill(server.ranks()[rank], KILL)
    assert server.wait() == 1
    assert f"the process of rank {rank} was killed by SIGKILL" in server.lines[-1]
    assert "while starting" in server.lines[-1]


def test_a_rank_that_stops_while_starting_ends_the_start(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    for rank in (0, 1):
        server = start(servers, tiny_model, tmp_path, "--tp", "2", program=held(gate))
        until(lambda server=server: len(server.ranks()) == 2)
        os.kill(server.ranks()[rank], STOP)
    gate.touch()
    for rank, server in enumerate(servers):
        assert server.wait(2 * DEADLINE) == 1
        assert f"the process of rank {rank} gave no sign of life for 30 s" in server.lines[-1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_without_memory_ends_the_start_with_a_sentence(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path, rank: int
) -> None:
    gate, flags = tmp_path / "gate", ("--tp", "2", "--kv-cache-tokens", "16M")
    server = start(servers, tiny_model, tmp_path, *flags, program=held(gate))
    until(lambda: len(server.ranks()) == 2)
    enough_to_begin = 1 << 30  # the cache needs 1.5 GiB more
    resource.prlimit(server.ranks()[rank], resource.RLIMIT_AS, (enough_to_begin, enough_to_begin))
    gate.touch()
    assert server.wait() == 1
    assert f"rank {rank}: there is not enough memory" in server.lines[-1]
    assert "--kv-cache-tokens" in server.lines[-1]


def test_a_damaged_plan_ends_the_group_and_the_streams_go_on(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path
) -> None:
    server = start(servers, tiny_model, tmp_path, "--tp", "2")
    port = server.wait_ready()
    prompt = [5, 6, 7]
    expected = text_of(Stream(port, prompt, GREEDY_TOKENS))
    before = server.ranks()

    stream = Stream(port, prompt, GREEDY_TOKENS)
    stream.wait_events(1)
    with plan_memory(before[1]).open("r+b", buffering=0) as memory:
        garbage = b"\xff" * os.fstat(memory.fileno()).st_size

        def damage() -> bool:
            memory.seek(0)
            memory.write(garbage)
            return not alive(before[1])

        until(damage)

    server.wait_for_line("the engine is ready again")
    # What a rank reads of a plan that is overwritten meanwhile is wrong in one way or another, and
    # the other rank may miss it before its reason is known.
    died = re.search(r"the engine died: rank [01]: (.*);", server.output)
    assert died, server.output
    reasons = (
        r"the plan channel is damaged|a plan is damaged: .*|sequence \d+ is not live"
        r"|rank 0 sends step plans of version 255, .*|rank 1 \(process \d+\) has left the group"
    )
    assert re.fullmatch(reasons, died[1]), died[1]
    assert not any(map(alive, before))
    assert text_of(stream) == expected


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stopped_rank_does_not_outlive_its_server(
    servers: list[ServerProcess], tiny_model: Path, tmp_path: Path, rank: int
) -> None:
    server = start(servers, tiny_model, tmp_path, "--tp", "2")
    server.wait_ready()
    ranks = server.ranks()
    os.kill(ranks[rank], STOP)
    server.signal(KILL)
    assert server.wait() == -KILL
    until(lambda: not any(map(alive, ranks)))


@pytest.mark.parametrize(
    ("rank", "end", "moment"),
    [
        (0, KILL, "idle"),
        (1, KILL, "idle"),
        (0, KILL, "prefill"),
        (1, KILL, "prefill"),
        (0, KILL, "decode"),
        (1, KILL, "decode"),
        (1, STOP, "idle"),
        (0, STOP, "prefill"),
        (1, STOP, "prefill"),
        (0, STOP, "decode"),
        (1, STOP, "decode"),
    ],
)
def test_streams_go_on_when_a_rank_is_lost(
    servers: list[ServerProcess],
    tiny_model: Path,
    tmp_path: Path,
    rank: int,
    end: signal.Signals,
    moment: str,
) -> None:
    # The prompt is computed twice, so that the second prefill takes as long.
    flags = ["--disable-prefix-cache"] if moment == "prefill" else []
    server = start(servers, tiny_model, tmp_path, "--tp", "2", "--max-batch-tokens", "64", *flags)
    port = server.wait_ready()
    prompt = LONG_PROMPT if moment == "prefill" else [5, 6, 7]
    expected = text_of(Stream(port, prompt, GREEDY_TOKENS))
    before = server.ranks()

    stream = None if moment == "idle" else Stream(port, prompt, GREEDY_TOKENS)
    if stream is not None and moment == "decode":
        stream.wait_events(1)  # a message may carry many tokens
    elif stream is not None:
        time.sleep(0.03)
    lost_at = time.monotonic()
    os.kill(before[rank], end)

    until(lambda: not any(map(alive, before)))
    assert time.monotonic() - lost_at < LIMIT
    server.wait_for_line("the engine is ready again")
    reason = "was killed by SIGKILL" if end == KILL else "gave no sign of life for 7 s"
    assert f"the process of rank {rank} {reason}" in server.output
    if stream is not None:
        assert text_of(stream) == expected
    assert text_of(Stream(port, prompt, GREEDY_TOKENS)) == expected


@pytest.mark.parametrize(
    ("size", "rank", "thread", "reason"),
    [
        (1, 0, "minisgl-engine", "the engine process made no progress for 2 s"),
        (2, 0, "minisgl-engine", "rank 0 .* 2 s"),
        (2, 1, "minisgl-follow", "rank 0: rank 1 .* didn't come to a collective within 2 s"),
    ],
)
def test_streams_go_on_when_a_thread_of_a_rank_is_stuck(
    servers: list[ServerProcess],
    tiny_model: Path,
    tmp_path: Path,
    size: int,
    rank: int,
    thread: str,
    reason: str,
) -> None:
    server = start(servers, tiny_model, tmp_path, "--tp", str(size), "--step-timeout", "2")
    port = server.wait_ready()
    prompt = [5, 6, 7]
    expected = text_of(Stream(port, prompt, GREEDY_TOKENS))
    before = server.ranks()

    stall_thread(before[rank], thread)  # before the stream, which might end too soon
    stalled_at = time.monotonic()
    stream = Stream(port, prompt, GREEDY_TOKENS)

    until(lambda: not any(map(alive, before)))
    assert time.monotonic() - stalled_at < LIMIT
    server.wait_for_line("the engine is ready again")
    assert re.search(f"the engine died: .*{reason} .*--step-timeout", server.output), server.output
    assert text_of(stream) == expected
