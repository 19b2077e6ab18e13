"""The shell, piped and in a pretended terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisgl import LLM, launch_server
from minisgl.config import ServerArgs
from minisgl.distributed import DistributedInfo
from minisgl.engine.api import EngineStartError
from minisgl.ipc.messages import EngineOptions
from minisgl.model_files.files import ModelError
from minisgl.offline.local_model import LocalModel, open_local_model
from minisgl.offline.shell import Shell, run_shell, terminal_reader
from minisgl.tokenizer import load_tokenizer
from tests.python.offline.fake_native import EOS, FakeNative


@pytest.fixture
def talk(
    native: FakeNative,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """Pipes lines through run_shell: exit status, output, notes. The engine says "fine"."""
    answer = load_tokenizer(model).encode("Größe: fine 😀")
    native.script = lambda request: [*answer, EOS]

    def run(*lines: str, **settings: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        status = run_shell(ServerArgs(model=model, shell=True, **settings))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("args", "options", "argv"),
    [
        (None, {"run_shell": True}, True),
        (None, {}, True),
        (ServerArgs(), {"run_shell": True}, False),
        (ServerArgs(shell=True), {}, False),
    ],
)
def test_launch_server_starts_it(
    native: FakeNative,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: ServerArgs | None,
    options: dict[str, bool],
    argv: bool,
) -> None:
    """The command line says which model, and `--shell` where the call doesn't; or `args` does."""
    native.script = lambda request: [*load_tokenizer(model).encode("fine"), EOS]
    flags = [model] if options else [model, "--shell"]
    monkeypatch.setattr("sys.argv", ["program", *(flags if argv else ["--no-such-flag"])])
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\n"))
    if args is not None:
        args = replace(args, model=model)
    assert launch_server(args, **options) == 0
    assert capsys.readouterr().out == "fine\n"


def prompts(native: FakeNative, model: str) -> list[str]:
    assert native.engine is not None
    tokenizer = load_tokenizer(model)
    return [
        tokenizer.decode(request["prompt"], skip_special_tokens=False)
        for request in native.engine.requests
    ]


def test_answers_are_sampled_as_the_model_publishes(
    talk: Any, native: FakeNative, model: str
) -> None:
    def sampled(**settings: Any) -> tuple[float, float, int]:
        assert talk("hi", **settings)[0] == 0
        assert native.engine is not None
        request = native.engine.requests[-1]
        return request["temperature"], request["top_p"], request["top_k"]

    assert sampled() == (0.2, 0.9, 0)
    (Path(model) / "generation_config.json").write_text('{"temperature": 0.6, "top_k": 20}')
    assert sampled() == (0.6, 1.0, 20)
    assert sampled(generation_config="none") == (0.2, 0.9, 0)


def test_answers_stream_to_the_output(talk: Any, native: FakeNative, model: str) -> None:
    status, out, _ = talk("hi", "", "and you?")
    assert status == 0
    assert out == "Größe: fine 😀\n" * 2
    first, second = prompts(native, model)
    assert first == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert second == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nGröße: fine 😀<|im_end|>\n"
        "<|im_start|>user\nand you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert native.engine is not None
    assert native.engine.stopped


def test_reset_forgets(talk: Any, native: FakeNative, model: str) -> None:
    _, out, notes = talk("hi", "/reset", "again")
    assert out == "Größe: fine 😀\n" * 2
    assert "forgotten" in notes
    assert prompts(native, model)[1] == "<|im_start|>user\nagain<|im_end|>\n<|im_start|>assistant\n"


def test_exit_help_and_unknown_commands(talk: Any, native: FakeNative) -> None:
    status, out, notes = talk("/help", "/nonsense x", "/exit", "not read")
    assert status == 0
    assert "/reset" in out
    assert "no command /nonsense" in notes
    assert native.engine is not None
    assert native.engine.requests == []


def test_a_conversation_that_is_too_long(talk: Any, native: FakeNative, model: str) -> None:
    status, out, notes = talk("word " * 200, "hi")
    assert status == 0
    assert re.search(r"has \d+ tokens, the model takes 200: /reset begins a new one", notes)
    assert out == "Größe: fine 😀\n"
    assert prompts(native, model) == ["<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"]


def test_the_context_fills_up(talk: Any, native: FakeNative) -> None:
    native.script = lambda request: [50]
    status, _, notes = talk("hi")
    assert status == 0
    assert "the context of 200 tokens is full" in notes


def test_a_model_that_cannot_be_had(talk: Any, model: str, capsys: Any) -> None:
    (Path(model) / "config.json").unlink()
    status, out, err = talk("hi")
    assert (status, out) == (1, "")
    assert err == f"minisgl-serve: error: {model} has no config.json: it is not a model.\n"


def test_an_engine_that_fails(talk: Any, native: FakeNative) -> None:
    def script(request: dict[str, Any]) -> list[int]:
        assert native.engine is not None
        native.engine.on_take = lambda: native.engine.refuse(  # type: ignore[union-attr]
            request["id"], "queue_full", "out of pages"
        )
        return [50]

    native.script = script
    status, _, notes = talk("hi")
    assert status == 1
    assert "the engine failed: out of pages" in notes


@pytest.fixture
def opened(native: FakeNative, model: str) -> Iterator[LocalModel]:
    with contextlib.closing(
        open_local_model(model, lambda path: EngineOptions(model_path=path), show_progress=False)
    ) as opened:
        yield opened


def lines(*script: Any) -> Any:
    """Reads these lines, raises these exceptions, then ends."""
    remaining = iter(script)

    def read() -> str:
        line = next(remaining, EOFError())
        if isinstance(line, BaseException):
            raise line
        assert isinstance(line, str)
        return line

    return read


def test_ctrl_c_stops_the_answer_only(
    opened: LocalModel, native: FakeNative, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = native.engine
    assert fake is not None
    fake.script = lambda request: opened.text.tokenizer.encode("word ")
    steps = iter(range(10**6))

    def interrupt() -> None:
        if next(steps) == 5:
            fake.on_take = lambda: time.sleep(0.01)  # the signal has time to arrive
            os.kill(os.getpid(), signal.SIGINT)

    fake.on_take = interrupt
    assert Shell(opened, lines("hi", KeyboardInterrupt(), "/exit")).run() == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("word")
    assert "[stopped]" in captured.err
    assert len(fake.aborted) == 1
    while opened.engine.num_live:  # the engine confirms the abort
        time.sleep(0.01)


def test_without_a_chat_template_the_line_is_continued(
    native: FakeNative, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(model) / "tokenizer_config.json").unlink()
    with contextlib.closing(
        open_local_model(model, lambda path: EngineOptions(model_path=path), show_progress=False)
    ) as opened:
        Shell(opened, lines("Once upon")).run()
    assert prompts(native, model) == ["Once upon"]


def test_history_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prompt_toolkit.application import create_app_session
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read_line = terminal_reader(tmp_path / "state")
        keys.send_text("hello\n")
        assert read_line() == "hello"
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            read_line()
    history = tmp_path / "state" / "shell_history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o077 == 0
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        read_line = terminal_reader(tmp_path / "state")
        keys.send_text("\x1b[A\n")  # the arrow up brings the line of the last session
        assert read_line() == "hello"


@pytest.mark.parametrize("entry", ["shell", "LLM"])
def test_ranks_have_the_step_timeout_that_was_asked_for(
    model: str, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    asked: list[float] = []

    class Client:
        def __init__(self, *_: Any, step_timeout: float, **__: Any) -> None:
            asked.append(step_timeout)

        async def start(self, timeout: float | None) -> None:
            raise EngineStartError("enough is known")

        async def close(self) -> None: ...

    monkeypatch.setattr("minisgl.offline.local_model.EngineClient", Client)
    if entry == "shell":
        assert (
            run_shell(
                ServerArgs(model=model, shell=True, tp_info=DistributedInfo(0, 2), step_timeout=90)
            )
            == 1
        )
    else:
        with pytest.raises(ModelError, match="enough is known"):
            LLM(model, tp=2, step_timeout=90, show_progress=False)
        with pytest.raises(ValueError, match="step_timeout must be between 1 and 86400, got 0"):
            LLM(model, tp=2, step_timeout=0)
    assert asked == [90]
