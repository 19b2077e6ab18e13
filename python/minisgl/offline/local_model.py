"""LocalModel: a model, its tokenizer and an engine on an event loop of its own, under LLM and the
shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from minisgl.config import STEP_TIMEOUT
from minisgl.engine.api import EngineApi, EngineBusy, EngineStartError, EngineUnavailable
from minisgl.engine.client import EngineClient
from minisgl.engine.revival import RestartPolicy
from minisgl.ipc.messages import NO_STANDING, EngineOptions, Output, PhaseReport, Standing
from minisgl.model_files.files import ModelError
from minisgl.model_files.published_sampling import published_sampling
from minisgl.model_files.source import resolve_model
from minisgl.offline.in_flight import run_all
from minisgl.offline.loop_thread import LoopThread
from minisgl.offline.native_engine import NativeEngine
from minisgl.rank.cuda_library import load_cublas
from minisgl.system import (
    SystemLimitError,
    check_threads,
    connection_limit,
    open_standard_streams,
)
from minisgl.text.answer import AnswerReader, Piece
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import DetokenizerOptions

if TYPE_CHECKING:
    from minisgl._native import Engine
    from minisgl.engine.stream import TokenStream
    from minisgl.offline.prompts import PromptRequest
    from minisgl.sampling_params import SamplingParams

RETRY_SECONDS = (
    0.01  # until an engine that has no room, or whose end isn't clear yet, is asked again
)

OfflineEngine = NativeEngine | EngineClient
Progress = Callable[[str, int, int], None]  # phase, done, total
T = TypeVar("T")


class EngineError(RuntimeError):
    """The engine died or ended a request by its own fault; the message says why."""


class LocalModel:
    """Made by open_local_model(); close() is due. Coroutines here belong to its loop, on which
    run() runs them; the rest to one thread at a time.
    """

    def __init__(
        self,
        loop: LoopThread,
        engine: OfflineEngine,
        text: TextFrontend,
        name: str,
        sampling_defaults: Mapping[str, float],
    ) -> None:
        self.engine: EngineApi = engine
        self.text = text
        self.name = name
        self.sampling_defaults = sampling_defaults  # SamplingParams' fields
        self._loop = loop
        self._close = weakref.finalize(self, _end, loop, engine, text)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the loop and waits for it. KeyboardInterrupt cancels it."""
        if not self._close.alive:
            work.close()
            raise RuntimeError("the engine is closed")
        return self._loop.run(work)

    async def answer(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        standing: Standing = NO_STANDING,
        prefix_salt: bytes | None = None,
        continues_prompt: bool = False,
        whole: bool = False,
    ) -> AsyncGenerator[Piece, None]:
        """The answer to one request as it is made, or with `whole`, which costs less, in one piece;
        a stop string ends it early either way. The request ends when the generator is closed.

        Raises ValueError for the request's own fault, EngineError when the engine ends it.
        """
        options = DetokenizerOptions.of(params, continues_prompt=continues_prompt)
        whole = whole and not params.stop  # else tokens behind a stop string would be made
        reader = AnswerReader(self.text.detokenizer(options), params.stop_token_ids)
        stream = await self._submit(prompt_ids, params, standing, prefix_salt)
        try:
            while not reader.finish:
                output = await stream.next(whole=whole)
                self._check(output)
                piece = reader.read(output)
                yield piece if isinstance(piece, Piece) else await piece
        finally:
            stream.abort()

    async def embed(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        *,
        standing: Standing = NO_STANDING,
        prefix_salt: bytes | None = None,
    ) -> Output:
        """The output with the embedding that params.pooling asks for. Raises as answer() does."""
        stream = await self._submit(prompt_ids, params, standing, prefix_salt)
        try:
            output = await stream.next(whole=True)
        finally:
            stream.abort()
        self._check(output)
        return output

    async def _submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        standing: Standing,
        prefix_salt: bytes | None,
    ) -> TokenStream:
        engine = self.engine
        bad_words = await self.text.encode_words(params.bad_words)
        eos_token_ids = self.text.tokenizer.eos_token_ids
        while True:
            try:
                return engine.submit(
                    prompt_ids, params, eos_token_ids, bad_words, prefix_salt, standing
                )
            except EngineBusy:  # aborted requests may stay for a step
                pass
            except EngineUnavailable as error:
                if engine.state != "restarting":
                    raise EngineError(engine.failure or str(error)) from error
            await asyncio.sleep(RETRY_SECONDS)

    def _check(self, output: Output) -> None:
        if output.finish == "error":
            if output.error_code in ("invalid_request", "too_long"):
                raise ValueError(output.error)
            raise EngineError(self.engine.failure or output.error or "the engine ended the request")
        if output.finish == "abort":
            raise EngineError("the engine was closed")

    def close(self) -> None:
        """Ends what lives, and the engine. Safe to call again."""
        self._close()


async def embed_all(
    model: LocalModel, requests: Sequence[PromptRequest], *, use_tqdm: bool
) -> list[Output]:
    """The outputs with the requests' embeddings, in their order."""
    outputs: dict[int, Output] = {}

    async def embed(number: int) -> int:
        request = requests[number]
        outputs[number] = await model.embed(
            request.ids,
            request.params,
            standing=request.standing,
            prefix_salt=request.prefix_salt,
        )
        return len(request.ids)

    await run_all(range(len(requests)), embed, unit="embedding", use_tqdm=use_tqdm)
    return [outputs[number] for number in range(len(requests))]


def _end(loop: LoopThread, engine: OfflineEngine, text: TextFrontend) -> None:
    if loop.is_current():  # the garbage collector may call from there
        threading.Thread(target=_end, args=(loop, engine, text)).start()
        return
    for work in (text.close(), engine.close()):
        with contextlib.suppress(Exception):
            loop.run(work)
    loop.close()


def open_local_model(
    model: str | None,
    options: Callable[[str], EngineOptions],
    *,
    revision: str | None = None,
    chat_template: str | None = None,
    generation_config: str = "auto",
    cache_dir: Path | None = None,
    show_progress: bool = True,
    weights: bool = True,
    tp: int = 1,
    comm: str = "auto",
    step_timeout: float = STEP_TIMEOUT,
) -> LocalModel:
    """Finds the model, loads its tokenizer and weights, starts the engine: in this process, or
    where `tp` is more than 1 as so many processes that sum through `comm`, each of which is lost
    when it works for `step_timeout` seconds without progress.

    `options` makes the engine's options from the model's path; `chat_template` is the path of a
    Jinja file; `generation_config` "auto" takes the model's published sampling for the default of
    requests; `weights` is resolve_model's. ModelError with one sentence.
    """
    files = resolve_model(
        model,
        show_progress=show_progress,
        revision=revision,
        cache_dir=cache_dir,
        weights=weights,
    )
    text = TextFrontend.local(files.path, chat_template)
    defaults = published_sampling(files.path) if generation_config == "auto" else {}
    engine_options = options(files.path)
    open_standard_streams()
    loop = LoopThread("minisgl-loop")
    try:
        with _loading_bar(show_progress) as progress:
            engine: OfflineEngine
            if tp > 1:
                connection_limit(tp)
                check_threads(tp)
                ranks = _start_ranks(
                    engine_options, progress, size=tp, comm=comm, step_timeout=step_timeout
                )
                engine = loop.run(ranks)
            else:
                native = _load_native(engine_options, progress)
                engine = loop.run(_start_native(native, engine_options))
    except BaseException as error:
        loop.close()
        if isinstance(error, (EngineStartError, SystemLimitError)):
            raise ModelError(str(error)) from error
        raise
    return LocalModel(loop, engine, text, files.name, defaults)


@contextlib.contextmanager
def _loading_bar(show_progress: bool) -> Iterator[Progress]:
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

        yield progress


def _load_native(options: EngineOptions, progress: Progress) -> Engine:
    """Loads an engine into this process, on this thread: Ctrl-C is noticed by `progress`."""
    try:
        from minisgl._native import Engine, InputError, build_info
    except ImportError as error:
        raise EngineStartError(
            f"the native module can't be imported ({error}): reinstall minisgl."
        ) from error
    load_cublas(build_info()["cuda"])
    try:
        return Engine(**dataclasses.asdict(options), progress=progress)
    except InputError as error:
        raise EngineStartError(str(error)) from error
    except MemoryError as error:
        raise EngineStartError(
            "there is not enough memory for the model and its KV cache: "
            "a smaller kv_cache_tokens needs less."
        ) from error


async def _start_native(engine: Engine, options: EngineOptions) -> NativeEngine:
    return NativeEngine(engine, options)


async def _start_ranks(
    options: EngineOptions, progress: Progress, *, size: int, comm: str, step_timeout: float
) -> EngineClient:
    """Starts `size` ranks. When one is lost, the engine is."""

    def on_phase(report: PhaseReport) -> None:
        if report.total:
            progress(report.phase.removeprefix("loading "), report.done, report.total)

    client = EngineClient(
        options,
        size=size,
        comm=comm,
        step_timeout=step_timeout,
        max_waiting=options.max_waiting,
        restart=RestartPolicy(max_failures=0),
        on_phase=on_phase,
    )
    try:
        await client.start(None)
    except BaseException:
        await client.close()
        raise
    return client
