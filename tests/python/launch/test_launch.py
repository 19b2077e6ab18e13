"""minisgl-serve as a process: start, failures, signals, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.python.engine.fake_rank import FAIL, KILL, UNSENDABLE_ONCE
from tests.python.launch.servers import (
    SERVER,
    ServerProcess,
    Stream,
    alive,
    get,
    is_called,
    make_model,
    until,
)
from tests.python.ports import free_port

Start = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("launch") / "tiny")


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Start]:
    servers: list[ServerProcess] = []

    def start_one(*flags: str, **environment: str) -> ServerProcess:
        server = ServerProcess(model, tmp_path / "tmp", *flags, environment=environment)
        servers.append(server)
        return server

    yield start_one
    for server in servers:
        if server.process.poll() is None:
            server.end()


def test_it_starts_says_what_it_chose_and_ends_with_status_0(start: Start) -> None:
    server = start()
    port = server.wait_ready()
    assert get(port, "/ready")[0] == 200
    for word in ("loading weights: ", "threads", "KV cache", "longest request"):
        assert word in server.output
    assert server.files() == []
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert "Traceback" not in server.output
    assert server.files() == []


def test_json_lines_of_all_processes(start: Start) -> None:
    server = start("--log-format", "json", "--log-level", "debug")
    port = int(server.wait_for_line(r"ready after .* http://127\.0\.0\.1:(\d+)")[1])
    stream = Stream(port, [UNSENDABLE_ONCE], 5)
    assert "[DONE]" in stream.join()
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    lines = [json.loads(line) for line in server.lines]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    (of_rank,) = [line for line in lines if "exception" in line]
    assert of_rank["message"] == "unexpected error while forwarding outputs"
    (request,) = [line for line in lines if line["logger"] == "minisgl.requests"]
    assert (request["prompt_tokens"], request["generated_tokens"]) == (1, 5)
    assert (request["reason"], request["status"]) == ("length", 200)


def test_a_failed_start_is_a_json_line_too(start: Start) -> None:
    server = start("--log-format", "json", FAKE_RANK_KIND="refuse")
    assert server.wait() == 1
    last = [json.loads(line) for line in server.lines][-1]
    assert (last["level"], "the model file is no good" in last["message"]) == ("error", True)


def test_a_hypercorn_that_passes_our_protocol_by_ends_the_start(
    model: Path, tmp_path: Path
) -> None:
    """It keeps the class that it was made with, as another version's might."""
    program = f"""
import hypercorn.asyncio.run as run
made = run.worker_serve
run.worker_serve = type(made)(made.__code__, dict(vars(run)))
run.worker_serve.__kwdefaults__ = made.__kwdefaults__
import runpy
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""
    server = ServerProcess(model, tmp_path / "tmp", program=("-c", program))
    assert server.wait() == 1
    assert "Traceback" not in server.output
    (line,) = [line for line in server.lines if "error:" in line]
    assert "doesn't run this server's HTTP protocol" in line
    assert "pip install 'hypercorn>=0.18,<0.19'" in line


def test_health_answers_while_the_model_loads(start: Start) -> None:
    port = free_port()
    server = start("--port", str(port), FAKE_RANK_KIND="hang")

    def answers() -> bool:
        try:
            return get(port, "/health")[0] == 200
        except ConnectionError:
            return False

    until(answers)
    assert get(port, "/ready")[0] == 503
    assert Stream(port, [1], 5).join().startswith('{"error"')
    server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [("refuse", "the model file is no good"), ("die", "ended with status 7 while starting")],
)
def test_a_rank_that_fails_at_start_ends_it_with_its_sentence(
    start: Start, kind: str, sentence: str
) -> None:
    server = start(FAKE_RANK_KIND=kind)
    assert server.wait() == 1
    assert server.lines[-1].startswith("minisgl-serve: error: ")
    assert sentence in server.lines[-1]
    assert "Traceback" not in server.output
    assert server.files() == []


def test_the_start_has_a_deadline(start: Start) -> None:
    server = start("--startup-timeout", "2", FAKE_RANK_KIND="hang", MINISGL_API_KEYS="k")
    assert server.wait() == 1
    assert "MINISGL_API_KEYS has no effect: MINISGL_API_KEY has one" in server.lines[0]
    assert "not ready within 2 s" in server.lines[-1]
    assert "--startup-timeout" in server.lines[-1]
    assert server.files() == []


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = start("--port", str(port))
        assert server.wait() == 1
    assert server.lines == [
        f"minisgl-serve: error: port {port} of 127.0.0.1 is taken by another program: end that "
        "one or choose another with --port"
    ]


def test_a_model_that_is_not_there(start: Start, model: Path) -> None:
    server = ServerProcess(model / "nowhere", model.parent / "tmp")
    assert server.wait() == 1
    assert len(server.lines) == 1
    assert "nowhere" in server.lines[0]


@pytest.mark.parametrize(
    ("content", "fault"),
    [(None, "can't be read"), ("", "is empty"), ("{{ broken", "has an error: unexpected end")],
)
def test_a_chat_template_that_is_no_good_ends_the_start(
    start: Start, tmp_path: Path, content: str | None, fault: str
) -> None:
    file = tmp_path / "chat.jinja"
    if content is not None:
        file.write_text(content)
    server = start("--chat-template", str(file))
    assert server.wait() == 1
    assert server.lines[-1].startswith(
        f"minisgl-serve: error: the chat template {str(file)!r} {fault}"
    )
    assert not server.lines[-1].endswith("..")
    assert "Traceback" not in server.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_live_streams_end(start: Start, number: signal.Signals) -> None:
    server = start()
    port = server.wait_ready()
    stream = Stream(port, [1], 200)
    stream.wait_events(3)
    (rank,) = server.ranks()
    os.kill(rank, signal.SIGSTOP)  # so that the stream doesn't end meanwhile
    server.signal(number)
    server.wait_for_line(r"shutting down: live requests \(1\) have up to")
    assert get(port, "/ready")[0] == 503
    assert get(port, "/health")[0] == 200
    refused = Stream(port, [1], 5)
    assert refused.join().startswith('{"error"')
    assert refused.status == 503
    os.kill(rank, signal.SIGCONT)
    assert stream.join().endswith("data: [DONE]")
    assert server.wait() == 0
    assert "Traceback" not in server.output


def test_streams_are_aborted_at_the_drain_deadline(start: Start) -> None:
    server = start("--drain-timeout", "0.5")
    stream = Stream(server.wait_ready(), [1], 90_000)
    stream.wait_events(3)
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    text = stream.join()
    assert "[DONE]" not in text
    assert '"error"' in text
    assert "Traceback" not in server.output


def test_a_listener_that_dies_in_the_drain_ends_the_server_with_its_error(
    model: Path, tmp_path: Path
) -> None:
    program = f"""
import asyncio, runpy, signal
import minisgl.serving
serve = minisgl.serving.serve_http
async def serve_until_signal(*arguments, **options):
    served = asyncio.create_task(serve(*arguments, **options))
    broken = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, broken.set)
    await broken.wait()
    served.cancel()
    raise RuntimeError("nobody thought of this")
minisgl.serving.serve_http = serve_until_signal
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""
    flags = ("--drain-timeout", "600")
    server = ServerProcess(model, tmp_path / "tmp", *flags, program=("-c", program))
    stream = Stream(server.wait_ready(), [1], 90_000)
    stream.wait_events(3)
    server.signal(signal.SIGTERM)
    server.wait_for_line("shutting down")
    server.signal(signal.SIGUSR1)
    assert server.wait() == 1  # and not at --drain-timeout
    assert "RuntimeError: nobody thought of this" in server.output
    assert server.files() == []


def test_a_second_signal_ends_at_once(start: Start) -> None:
    server = start()
    stream = Stream(server.wait_ready(), [1], 90_000)
    stream.wait_events(3)
    children = server.children()
    server.signal(signal.SIGINT)
    server.wait_for_line("a second signal ends them at once")
    server.signal(signal.SIGINT)
    assert server.wait() == 128 + signal.SIGINT
    until(lambda: not any(map(alive, children)))
    assert server.files() == []


def test_a_second_signal_ends_a_server_whose_loop_is_held_up(model: Path, tmp_path: Path) -> None:
    program = f"""
import runpy, sys
from minisgl.server.status import StatusPages
async def version(self, request):
    print("held up", file=sys.stderr, flush=True)
    while True:
        pass
StatusPages.version = version
runpy.run_path({str(SERVER)!r}, run_name="__main__")
"""
    server = ServerProcess(model, tmp_path / "tmp", program=("-c", program))
    with socket.create_connection(("127.0.0.1", server.wait_ready())) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_for_line("held up")
        children = server.children()
        server.signal(signal.SIGTERM)
        time.sleep(0.2)
        assert server.process.poll() is None

        def ended() -> bool:  # two that come before either is handled count as one
            server.signal(signal.SIGTERM)
            return server.process.poll() is not None

        until(ended)
        assert server.wait() == 128 + signal.SIGTERM
    until(lambda: not any(map(alive, children)))
    assert server.files() == []


@pytest.mark.parametrize("flags", [(), ("--num-tokenizer", "2")])
def test_a_killed_server_leaves_no_process_and_no_files(
    start: Start, flags: tuple[str, ...]
) -> None:
    server = start(*flags)
    stream = Stream(server.wait_ready(), [1], 90_000)
    stream.wait_events(3)
    children = server.children()
    assert len(children) == (4 if flags else 1)
    server.signal(signal.SIGKILL)
    server.wait()
    until(lambda: not any(map(alive, children)) and not server.files())


def test_a_server_killed_while_it_starts_leaves_nothing(start: Start) -> None:
    server = start(FAKE_RANK_KIND="hang")
    until(server.children)
    children = server.children()
    server.signal(signal.SIGKILL)
    server.wait()
    until(lambda: not any(map(alive, children)) and not server.files())


@pytest.mark.parametrize("poison", [KILL, FAIL])
def test_a_request_that_ranks_die_of_ends_alone(start: Start, poison: int) -> None:
    server = start()
    port = server.wait_ready()
    stream = Stream(port, [1], 90_000)
    stream.wait_events(3)
    text = Stream(port, [poison], 90_000).join()
    assert '"error"' in text
    assert "[DONE]" not in text
    server.wait_for_line("the engine is ready again")
    until(lambda: get(port, "/ready")[0] == 200)
    assert Stream(port, [1], 5).join().endswith("data: [DONE]")
    seen = len(stream.events)
    stream.wait_events(seen + 3)
    assert not any('"error"' in event for event in stream.events)


def test_an_engine_that_fails_for_good_ends_the_server(start: Start, tmp_path: Path) -> None:
    server = start(FAKE_RANK_KIND="once", FAKE_RANK_MARKER=str(tmp_path / "started"))
    Stream(server.wait_ready(), [KILL], 90_000)
    assert server.wait() == 1
    assert "failed for good: it started once already" in server.lines[-1]
    assert "Traceback" not in server.output


def test_tokenizer_processes_serve_and_are_replaced(start: Start) -> None:
    server = start("--num-tokenizer", "1")
    port = server.wait_ready()
    text = Stream(port, [1], 5).join()
    assert text.endswith("data: [DONE]")
    workers = [pid for pid in server.children() if is_tokenizer(pid)]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, workers)) and len(server.children()) == 3)
    until(lambda: Stream(port, [1], 5).join().endswith("data: [DONE]"))


def test_a_stream_goes_on_when_its_detokenizer_is_killed(start: Start) -> None:
    server = start("--num-tokenizer", "1")
    port = server.wait_ready()

    def tokenizers() -> list[int]:
        return [pid for pid in server.children() if is_tokenizer(pid)]

    whole = text_of(Stream(port, [1], 600).join())
    assert len(whole) > 100
    stream = Stream(port, [1], 600)
    stream.wait_events(3)
    for _ in range(2):
        until(lambda: len(tokenizers()) == 2)
        killed = tokenizers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        until(lambda killed=killed: not any(map(alive, killed)))
    body = stream.join()
    assert body.endswith("data: [DONE]")
    assert text_of(body) == whole
    assert server.output.count("the detokenizer process was killed") >= 1


def text_of(body: str) -> str:
    """The text of all events of a stream."""
    events = [line.removeprefix("data: ") for line in body.splitlines()]
    return "".join(
        choice["text"]
        for event in events
        if event != "[DONE]"
        for choice in json.loads(event)["choices"]
    )


def is_tokenizer(pid: int) -> bool:
    return is_called(pid, "tokenizer-")
