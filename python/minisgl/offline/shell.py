"""run_shell: talk to the model in the terminal, with the engine in this process."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minisgl.environment import default_cache_dir
from minisgl.model_files.files import ModelError
from minisgl.offline.local_model import EngineError, LocalModel, open_local_model
from minisgl.sampling_params import SamplingParams
from minisgl.startup import engine_options

if TYPE_CHECKING:
    from minisgl.config import ServerArgs

HELP = """\
/reset  forget the conversation
/exit   leave (Ctrl-D too)
/help   this list
Ctrl-C stops the running answer."""

# For a model that publishes nothing of its own: cool, as the default model's makers advise, because
# a small model wanders when sampled warmer.
SAMPLING: Mapping[str, float] = {"temperature": 0.2, "top_p": 0.9}

# Returns the next line; EOFError at the end of input, KeyboardInterrupt on Ctrl-C.
ReadLine = Callable[[], str]


def run_shell(args: ServerArgs) -> int:
    """The shell with its exit status: 0, or 1 when the model can't be had or the engine died."""
    try:
        model = open_local_model(
            args.model,
            functools.partial(engine_options, args),
            revision=args.revision,
            chat_template=args.chat_template,
            generation_config=args.generation_config,
            weights=args.load_format != "dummy",
            tp=args.tp,
            comm=args.comm,
            step_timeout=args.step_timeout,
        )
    except ModelError as error:
        print(f"minisgl-serve: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    interactive = sys.stdin.isatty()
    with contextlib.closing(model):
        if interactive:
            print(f"{model.name}: /help lists the commands.")
            print("Ctrl-C stops an answer, Ctrl-D leaves.")
        read_line = terminal_reader(default_cache_dir()) if interactive else piped_line
        return Shell(model, read_line).run()


class Shell:
    """The conversation and the commands."""

    def __init__(self, model: LocalModel, read_line: ReadLine) -> None:
        self._model = model
        self._read_line = read_line
        self._messages: list[dict[str, Any]] = []

    def run(self) -> int:
        """Until the input ends or /exit; the exit status."""
        while True:
            try:
                line = self._read_line().strip()
            except EOFError:
                return 0
            except KeyboardInterrupt:
                continue
            if line == "/exit":
                return 0
            try:
                self._obey(line)
            except EngineError as error:
                print(f"the engine failed: {error}", file=sys.stderr)
                return 1

    def _obey(self, line: str) -> None:
        if line == "/reset":
            self._messages.clear()
            _note("the conversation is forgotten")
        elif line == "/help":
            print(HELP)
        elif line.startswith("/"):
            _note(f"there is no command {line.split()[0]}; /help lists them")
        elif line:
            self._messages.append({"role": "user", "content": line})
            answer = self._answer()
            if answer is None:
                self._messages.pop()
            else:
                self._messages.append({"role": "assistant", "content": answer})

    def _answer(self) -> str | None:
        """Writes the answer as it comes; what was written, None when nothing could be asked."""
        try:
            prompt_ids = self._prompt_ids()
        except ValueError as error:  # the template refuses it, or it isn't Unicode
            _note(str(error))
            return None
        limit = self._model.engine.info.max_model_len
        room = limit - len(prompt_ids)
        if room < 1:
            _note(
                f"the conversation has {len(prompt_ids)} tokens, the model takes {limit}: "
                "/reset begins a new one"
            )
            return None
        sampling: Mapping[str, Any] = self._model.sampling_defaults or SAMPLING
        params = SamplingParams(max_tokens=room, **sampling)
        pieces: list[str] = []
        try:
            finish = self._model.run(self._write_answer(prompt_ids, params, pieces))
            print()
            if finish == "length":
                _note(f"the context of {limit} tokens is full: /reset begins a new one")
        except KeyboardInterrupt:
            print()
            _note("stopped")
        except ValueError as error:
            _note(str(error))
            return None
        return "".join(pieces)

    async def _write_answer(
        self, prompt_ids: list[int], params: SamplingParams, pieces: list[str]
    ) -> str:
        """Writes the pieces of the answer as they come; why it ended."""
        finish = ""
        answer = self._model.answer(prompt_ids, params)
        async with contextlib.aclosing(answer):
            async for piece in answer:
                pieces.append(piece.text)
                print(piece.text, end="", flush=True)
                finish = piece.finish
        return finish

    def _prompt_ids(self) -> list[int]:
        """The conversation as the template has it; without a template, the last line alone."""
        text = self._model.text
        if text.tokenizer.chat_template is None:
            return self._model.run(text.encode(self._messages[-1]["content"]))
        return self._model.run(text.encode_chat(self._messages)).ids


def _note(text: str) -> None:
    """A remark of the shell's own: not in the output, which may be piped."""
    print(f"[{text}]", file=sys.stderr)


def piped_line() -> str:
    """A line of the standard input, with its end. Raises EOFError where there is none."""
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


def terminal_reader(history_dir: Path | None) -> ReadLine:
    """Line editing with a history that outlives the shell; plain input where it can't be had."""
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory
    except ImportError:
        return lambda: input("> ")
    try:
        if history_dir is None:
            raise FileNotFoundError("there is no home folder")
        history = history_dir / "shell_history"
        history_dir.mkdir(parents=True, exist_ok=True)
        history.touch(mode=0o600)
        session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)), reserve_space_for_menu=0
        )
    except OSError as error:
        _note(f"the history can't be kept: {error}")
        session = PromptSession(reserve_space_for_menu=0)
    return lambda: session.prompt("> ")
