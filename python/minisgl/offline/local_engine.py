"""LocalEngine: the native engine in this process, or a group of ranks, under LLM and the shell."""

from __future__ import annotations

import itertools
import select
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from minisgl.engine.api import EngineStartError
from minisgl.engine.request import make_request
from minisgl.ipc.messages import EngineInfo, EngineOptions, EngineStats, Output, Submit
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model
from minisgl.offline.group_engine import GroupEngine
from minisgl.rank.cuda_library import load_cublas
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer, load_tokenizer
from minisgl.tokenizer.chat_template import read_chat_template

if TYPE_CHECKING:
    from types import TracebackType

    from minisgl._native import Engine
    from minisgl.sampling_params import SamplingParams

# The engine wakes us for every output; this only bounds how late a dead engine is noticed.
_FAILURE_CHECK_MS = 5000
_ABORT_WAITS = 12  # of _FAILURE_CHECK_MS each, until aborted requests are given up


class EngineError(RuntimeError):
    """The engine died or ended a request by its own fault; the message says why."""


class LocalEngine:
    """A model, its tokenizer and its engine. Not for several threads at once."""

    def __init__(
        self, engine: Engine | GroupEngine, tokenizer: Tokenizer, name: str, *, max_in_flight: int
    ) -> None:
        self._engine = engine
        self.tokenizer = tokenizer
        self.model_name = name
        self.info = msgspec.convert(engine.info, EngineInfo)
        self.max_in_flight = max(1, max_in_flight)  # submitted at once; more might be refused
        self.live: set[int] = set()  # ids of requests whose end hasn't come
        self.finish_reason = ""  # of the last `stream`
        self._ids = itertools.count()
        self._poll = select.poll()
        self._poll.register(engine.event_fd(), select.POLLIN)
        self._closed = False
        engine.start()

    def request(self, prompt_ids: list[int], params: SamplingParams) -> Submit:
        """A request to submit later. ValueError when this model can't serve it."""
        return make_request(
            next(self._ids), prompt_ids, params, self.info, self.tokenizer.eos_token_ids
        )

    def stats(self) -> EngineStats:
        """As of the outputs taken last, or newer."""
        return msgspec.convert(self._engine.stats(), EngineStats)

    def submit(self, request: Submit) -> None:
        """Ends come back from `wait`, refusals too."""
        if self._closed:
            raise RuntimeError("the engine is closed")
        self._engine.submit(msgspec.structs.asdict(request))
        self.live.add(request.id)

    def wait(self) -> list[Output]:
        """Outputs of live requests; blocks until there are some. EngineError when it died."""
        while True:
            self._poll.poll(_FAILURE_CHECK_MS)
            outputs = [Output(*fields) for fields in self._engine.drain() if fields[0] in self.live]
            self.live.difference_update(output.id for output in outputs if output.finish)
            if outputs:
                return outputs
            if failure := self._engine.failure():
                self.live.clear()
                raise EngineError(failure)

    def abort(self, request_id: int) -> None:
        """Its end comes from `wait`, with what was made until then."""
        self._engine.abort(request_id)

    def abort_all(self) -> None:
        """Ends every live request and takes its outputs away."""
        for request_id in self.live:
            self._engine.abort(request_id)
        try:
            for _ in range(_ABORT_WAITS):
                if not self.live or self._engine.failure():
                    break
                self._poll.poll(_FAILURE_CHECK_MS)
                ends = (fields[0] for fields in self._engine.drain() if fields[2])
                self.live.difference_update(ends)
        finally:
            self.live.clear()  # what still comes of them, `wait` passes over

    def stream(
        self, prompt_ids: list[int], params: SamplingParams, *, continues_prompt: bool = False
    ) -> Generator[str, None, None]:
        """The text of one request as it is made.

        The request ends when the generator is closed. EngineError when the engine ends it.
        """
        detokenizer = IncrementalDetokenizer(
            self.tokenizer,
            DetokenizerOptions.of(params, continues_prompt=continues_prompt),
        )
        self.submit(self.request(prompt_ids, params))
        try:
            while self.live:
                for output in self.wait():
                    check_finish(output)
                    self.finish_reason = output.finish
                    yield detokenizer.push(shown_tokens(output))
                if detokenizer.stopped:
                    self.finish_reason = "stop"
                    break
            yield detokenizer.finish()
        finally:
            self.abort_all()

    def close(self) -> None:
        """Ends what lives and stops the engine's thread. Safe to call again."""
        if not self._closed:
            self._closed = True
            self.live.clear()
            self._engine.stop()

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def shown_tokens(output: Output) -> list[int]:
    """The tokens that have text: a stop token ends it and isn't part of it."""
    return output.token_ids[:-1] if output.finish == "stop" else output.token_ids


def check_finish(output: Output) -> None:
    """Raises what an output with an error stands for: ValueError for the request's own fault."""
    if output.finish == "error":
        if output.error_code in ("invalid_request", "too_long"):
            raise ValueError(output.error)
        raise EngineError(output.error or "the engine ended the request")


def open_local_engine(
    model: str | None,
    options: Callable[[str], EngineOptions],
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    cache_dir: Path | None = None,
    show_progress: bool = True,
    weights: bool = True,
    tp: int = 1,
    comm: str = "auto",
) -> LocalEngine:
    """Finds the model, loads its tokenizer and weights, starts the engine: in this process, or
    where `tp` is more than 1 as so many processes that sum through `comm`.

    `options` makes the engine's options from the model's path; `chat_template` is the path of a
    Jinja file; `weights` is resolve_model's. ModelError with one sentence.
    """
    files = resolve_model(
        model,
        show_progress=show_progress,
        revision=revision,
        cache_dir=cache_dir,
        weights=weights,
    )
    template = None if chat_template is None else read_chat_template(chat_template)
    tokenizer = load_tokenizer(files.path, chat_template=template)
    engine_options = options(files.path)
    engine = _load_engine(engine_options, show_progress, tp, comm)
    return LocalEngine(engine, tokenizer, files.name, max_in_flight=engine_options.max_waiting)


def _load_engine(
    options: EngineOptions, show_progress: bool, tp: int, comm: str
) -> Engine | GroupEngine:
    try:
        from minisgl._native import Engine, InputError, build_info
    except ImportError as error:
        raise ModelError(
            f"the native module can't be imported ({error}): reinstall minisgl."
        ) from error
    from tqdm import tqdm

    # Shown only when loading takes longer than one waits without asking.
    with tqdm(
        desc="loading", unit="B", unit_scale=True, delay=1.0, disable=not show_progress
    ) as bar:

        def progress(phase: str, done: int, total: int) -> None:
            bar.set_description(f"loading {phase}", refresh=False)
            bar.unit, bar.unit_scale = ("B", True) if phase == "weights" else ("", False)
            bar.total = total
            bar.update(done - bar.n)

        try:
            if tp > 1:
                return GroupEngine(options, tp, comm, progress)
            load_cublas(build_info()["cuda"])
            return Engine(**msgspec.structs.asdict(options), progress=progress)
        except (InputError, EngineStartError) as error:
            raise ModelError(str(error)) from error
        except MemoryError as error:
            raise ModelError(
                "there is not enough memory for the model and its KV cache: "
                "a smaller kv_cache_tokens needs less."
            ) from error
