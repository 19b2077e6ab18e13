"""One HTTP request's generation: its choices, their text as it becomes ready, usage, and an abort
that is never forgotten.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.sampling_params import ParameterError
from minisgl.server import errors
from minisgl.server.metrics import Metrics
from minisgl.text.answer import AnswerReader, Piece
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from minisgl.engine.api import EngineApi
    from minisgl.engine.stream import TokenStream
    from minisgl.ipc.messages import Output, PromptLogprob
    from minisgl.sampling_params import SamplingParams
    from minisgl.text.frontend import Detokenizer, TextFrontend


@dataclass(slots=True)
class TokenEntry:
    """A generated token's log probability. `offset`: characters of the choice's text that stand
    before it.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # most likely first
    offset: int


class Delta(msgspec.Struct):
    """What a choice has got since its last delta. `finish_reason` with its last: "stop" or
    "length". A struct, as one is made for every output.
    """

    index: int
    text: str
    entries: list[TokenEntry] = []
    finish_reason: str | None = None
    # With the first delta, where they were asked for.
    prompt_logprobs: list[PromptLogprob] | None = None
    token_ids: list[int] = []  # with a stop token
    # With the last, where a stop string or a stop token that the client named ended the choice:
    # that string, or the token's id.
    stop_reason: str | int | None = None


@dataclass(slots=True)
class Answer:
    """A choice from its beginning to its end."""

    texts: list[str] = field(default_factory=list)  # parts of the text
    entries: list[TokenEntry] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[PromptLogprob] | None = None

    def add(self, delta: Delta) -> None:
        """Takes the choice's next delta."""
        self.texts.append(delta.text)
        self.entries += delta.entries
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs


@dataclass(slots=True)
class _Prompt:
    """What the choices of one prompt have come to."""

    n: int
    num_finished: int = 0
    longest: int = 0  # tokens of those that finished


class Choice:
    """One of the engine's requests: makes deltas of its outputs."""

    def __init__(
        self,
        index: int,
        prompt: _Prompt,
        stream: TokenStream,
        detokenizer: Detokenizer,
        offsets: IncrementalDetokenizer | None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.stream = stream
        self.finished = False
        self.finish_reason = ""  # with `finished`: "stop", "length", "abort" or "error"
        self.queued_seconds: float | None = None  # before its first step, once it has ended
        self.first_token_at = 0.0  # time.perf_counter(); 0: none yet
        self.last_token_at = 0.0
        self._text_length = 0  # characters given out
        self._reader = AnswerReader(detokenizer, stream.request.params.stop_token_ids)
        # The same text without regard to stop strings; None: no logprobs were asked for.
        self._offsets = offsets
        self._offset = 0
        self._held: list[TokenEntry] = []  # their text isn't out yet

    @property
    def num_tokens(self) -> int:
        """Generated so far, a stop token included."""
        return self._reader.num_tokens

    @property
    def answer_finish(self) -> str:
        """Either "stop" or "length", once the answer is complete; "" before."""
        return self._reader.finish

    def read(self, output: Output) -> Piece | Awaitable[Piece]:
        """What the engine's next output adds to the answer, as AnswerReader.read() has it. Raises
        ApiError when the engine ended the request with an error, or aborted it.
        """
        if output.finish in ("error", "abort"):
            self.finished = True
            raise errors.engine_error(output)
        self.finished = bool(output.finish)
        return self._reader.read(output)

    def take(self, piece: Piece) -> Delta:
        """What clients see of a piece."""
        if self._reader.stopped and not self.finished:
            self.finished = True
            self.stream.abort()
        text = piece.text
        delta = Delta(
            self.index,
            text,
            [],
            piece.finish or None,
            piece.prompt_logprobs,
            piece.token_ids,
            piece.stop_reason,
        )
        if self._offsets is not None:
            self._text_length += len(text)
            self._hold(piece, self._offsets)
            delta.entries = self._release()
        return delta

    def _hold(self, piece: Piece, offsets: IncrementalDetokenizer) -> None:
        for token_id, (logprob, top) in zip(piece.shown_ids, piece.logprobs, strict=False):
            self._held.append(TokenEntry(token_id, logprob, top, self._offset))
            self._offset += len(offsets.push([token_id]))

    def _release(self) -> list[TokenEntry]:
        # A token goes out with its text. At the end the rest goes too, but for the tokens of a stop
        # string, whose text was cut off.
        if self.finished and not self._reader.stopped:
            released, self._held = self._held, []
            return released
        count = 0
        while count < len(self._held) and self._held[count].offset < self._text_length:
            count += 1
        released, self._held = self._held[:count], self._held[count:]
        return released


class Generation:
    """The choices of one HTTP request. Use it as a context manager: leaving it aborts what still
    runs.
    """

    def __init__(
        self, client: EngineApi, text: TextFrontend, metrics: Metrics, *, arrived: float
    ) -> None:
        self._client = client
        self._text = text
        self._metrics = metrics
        self._arrived = arrived  # time.perf_counter()
        self._choices: list[Choice] = []
        self._waiting: dict[asyncio.Task[Output], Choice] = {}
        self.num_prompt_tokens = 0
        self.num_live = 0

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._waiting:
            task.cancel()
        for choice in self._choices:
            if not choice.finished:
                choice.finished = True
                choice.finish_reason = "abort"
                choice.stream.abort()
                self._metrics.finished["abort"] += 1
        self.num_live = 0

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all choices so far, stop tokens included."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def queued_seconds(self) -> float | None:
        """The longest time that a choice waited for its first step; None where none says so."""
        waits = (choice.queued_seconds for choice in self._choices)
        return max((wait for wait in waits if wait is not None), default=None)

    @property
    def first_token_seconds(self) -> float | None:
        """From the request's arrival to its first token; None where none came."""
        times = [choice.first_token_at for choice in self._choices if choice.first_token_at]
        return min(times) - self._arrived if times else None

    @property
    def finish_reasons(self) -> list[str]:
        """Why the choices ended: each reason once, in the order of the choices."""
        return list(dict.fromkeys(choice.finish_reason for choice in self._choices))

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        options: DetokenizerOptions,
        *,
        n: int = 1,
        bad_words: Sequence[list[int]] = (),
        score_each: bool = False,
    ) -> None:
        """Adds `n` choices for a prompt, whose text is made with `options`; `bad_words` is what
        params.bad_words is in tokens. The prompt's log probabilities come with the first choice, or
        with `score_each` with each.

        Raises ApiError 400, 429 or 503; the context manager ends what was begun.
        """
        self.num_prompt_tokens += len(prompt_ids)
        prompt = _Prompt(n)
        for number in range(n):
            one = params if number == 0 else _variant(params, number, score_prompt=score_each)
            try:
                stream = self._client.submit(
                    prompt_ids, one, self._text.tokenizer.eos_token_ids, bad_words
                )
            except EngineBusy:
                raise errors.busy() from None
            except EngineUnavailable as error:
                raise errors.unavailable(error.state) from None
            except ParameterError as error:
                raise errors.bad_request(str(error), param=error.parameter) from None
            choice = Choice(
                len(self._choices),
                prompt,
                stream,
                self._text.detokenizer(options),
                None
                if params.logprobs is None
                else IncrementalDetokenizer(
                    self._text.tokenizer, msgspec.structs.replace(options, stop=[])
                ),
            )
            self._choices.append(choice)
            self.num_live += 1
            self._metrics.prompt_tokens += len(prompt_ids)
            self._metrics.request_prompt_tokens.observe(len(prompt_ids))

    async def ready(self) -> list[Delta]:
        """Waits until a choice has something, then takes all that the choices have. Raises ApiError
        when one failed.
        """
        if len(self._choices) == 1:
            choice = self._choices[0]
            return [await self._take(choice, await choice.stream.next())]
        if not self._waiting:
            for choice in self._choices:
                self._wait_for(choice)
        done, _ = await asyncio.wait(self._waiting, return_when=asyncio.FIRST_COMPLETED)
        deltas = []
        for task in sorted(done, key=lambda task: self._waiting[task].index):
            choice = self._waiting.pop(task)
            deltas.append(await self._take(choice, task.result()))
            if not choice.finished:
                self._wait_for(choice)
        return deltas

    async def collect(self) -> list[Answer]:
        """All choices, once they have ended. Raises ApiError when one failed."""
        answers = [Answer() for _ in self._choices]
        while self.num_live:
            for delta in await self.ready():
                answers[delta.index].add(delta)
        return answers

    def _wait_for(self, choice: Choice) -> None:
        self._waiting[asyncio.ensure_future(choice.stream.next())] = choice

    async def _take(self, choice: Choice, output: Output) -> Delta:
        metrics = self._metrics
        count = len(output.token_ids)
        if count:
            now = time.perf_counter()
            if not choice.first_token_at:
                choice.first_token_at = now
                metrics.time_to_first_token.observe(now - self._arrived)
            else:
                metrics.inter_token_latency.observe((now - choice.last_token_at) / count, count)
            choice.last_token_at = now
            metrics.generation_tokens += count
        try:
            piece = choice.read(output)
            delta = choice.take(piece if isinstance(piece, Piece) else await piece)
        finally:
            if choice.finished:
                self.num_live -= 1
                self._count_finished(choice, output)
        return delta

    def _count_finished(self, choice: Choice, output: Output) -> None:
        metrics = self._metrics
        # The answer's, where it has one: a stop string may end it with the engine's last output.
        choice.finish_reason = choice.answer_finish or output.finish
        metrics.finished[choice.finish_reason] += 1
        metrics.pace.ended()
        metrics.e2e_request_latency.observe(time.perf_counter() - self._arrived)
        metrics.request_generation_tokens.observe(choice.num_tokens)
        metrics.request_params_max_tokens.observe(choice.stream.request.params.max_tokens)
        prompt = choice.prompt
        prompt.num_finished += 1
        prompt.longest = max(prompt.longest, choice.num_tokens)
        if prompt.num_finished == prompt.n:
            metrics.request_params_n.observe(prompt.n)
            metrics.request_max_num_generation_tokens.observe(prompt.longest)
        if output.timings is not None:
            queue, prefill, decode = output.timings
            choice.queued_seconds = queue
            metrics.request_queue_time.observe(queue)
            metrics.request_prefill_time.observe(prefill)
            metrics.request_decode_time.observe(decode)
            metrics.request_inference_time.observe(prefill + decode)


def _variant(params: SamplingParams, number: int, *, score_prompt: bool) -> SamplingParams:
    """The parameters of a request's choice `number`, which is above 0. Choices of one request
    differ; choice 0 is what the same request with n=1 would get.
    """
    changes: dict[str, Any] = {}
    if params.seed is not None:
        changes["seed"] = (params.seed + number) % 2**64
    if params.prompt_logprobs is not None and not score_prompt:
        changes["prompt_logprobs"] = None
    return msgspec.structs.replace(params, **changes) if changes else params
