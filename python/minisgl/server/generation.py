"""One HTTP request's generation: its choices, their text as it becomes ready, usage, and an abort
that is never forgotten.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.sampling_params import ParameterError
from minisgl.server import errors
from minisgl.server.choice import Answer, Choice, Delta, PromptChoices
from minisgl.server.metrics import Metrics
from minisgl.text.answer import Piece
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minisgl.engine.api import EngineApi
    from minisgl.ipc.messages import Output, Standing
    from minisgl.sampling_params import SamplingParams
    from minisgl.text.formats import Parsing
    from minisgl.text.frontend import TextFrontend


class Generation:
    """The choices of one HTTP request. Use it as a context manager: leaving it aborts what still
    runs.
    """

    def __init__(
        self,
        client: EngineApi,
        text: TextFrontend,
        metrics: Metrics,
        *,
        arrived: float,
        prefix_salt: bytes | None = None,
        standing: Standing,
        session: str | None = None,
    ) -> None:
        self._client = client
        self._text = text
        self._metrics = metrics
        self._arrived = arrived  # time.perf_counter()
        self._prefix_salt = prefix_salt
        self._standing = standing
        self._session = session
        self._choices: list[Choice] = []
        self._waiting: dict[asyncio.Task[Output], Choice] = {}
        self.on_answer: Callable[[Choice], None] | None = None  # told of each that has its end
        self._counts_thoughts = False
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
    def num_cached_tokens(self) -> int:
        """Prompt tokens that were found in the prefix cache, as far as prefills have ended. Each
        prompt counts once, as its first choice found it.
        """
        firsts = {id(choice.prompt): choice for choice in reversed(self._choices)}
        return sum(choice.stream.num_cached for choice in firsts.values())

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all choices so far, stop tokens included."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def num_reasoning_tokens(self) -> int | None:
        """Of these the tokens of thoughts; None where they aren't told from the rest."""
        if not self._counts_thoughts:
            return None
        return sum(choice.num_reasoning_tokens for choice in self._choices)

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
        parsing: Parsing | None = None,
    ) -> None:
        """Adds `n` choices for a prompt, whose text is made with `options`; `bad_words` is what
        params.bad_words is in tokens. The prompt's log probabilities come with the first choice, or
        with `score_each` with each. `parsing`: how the text is taken apart; None: it isn't.

        Raises ApiError 400, 429 or 503; the context manager ends what was begun.
        """
        self.num_prompt_tokens += len(prompt_ids)
        prompt = PromptChoices(n)
        counts_thoughts = parsing is not None and parsing.counts_thoughts
        self._counts_thoughts |= counts_thoughts
        for number in range(n):
            one = params if number == 0 else _variant(params, number, score_prompt=score_each)
            try:
                stream = self._client.submit(
                    prompt_ids,
                    one,
                    self._text.tokenizer.eos_token_ids,
                    bad_words,
                    self._prefix_salt,
                    self._standing,
                    self._session,
                )
            except EngineBusy as error:
                if 0 < self.num_live == self._client.num_live:  # no later time will be better
                    raise errors.bad_request(
                        f"The choices of this request don't fit the queue together: {error}"
                    ) from None
                raise errors.refused(error) from None
            except (EngineUnavailable, ParameterError) as error:
                raise errors.refused(error) from None
            choice = Choice(
                len(self._choices),
                prompt,
                stream,
                self._text.detokenizer(options),
                None
                if params.logprobs is None and not counts_thoughts
                else IncrementalDetokenizer(
                    self._text.tokenizer, msgspec.structs.replace(options, stop=[])
                ),
                None if parsing is None else parsing.reader(),
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
        if choice.answer_finish and self.on_answer is not None:
            self.on_answer(choice)
        metrics = self._metrics
        # The answer's, where it has one: a stop string may end it with the engine's last output.
        choice.finish_reason = choice.answer_finish or output.finish
        choice.queued_seconds = metrics.note_end(
            choice.finish_reason, time.perf_counter() - self._arrived, output.timings
        )
        metrics.request_generation_tokens.observe(choice.num_tokens)
        metrics.request_params_max_tokens.observe(choice.stream.request.params.max_tokens)
        prompt = choice.prompt
        prompt.num_finished += 1
        prompt.longest = max(prompt.longest, choice.num_tokens)
        if prompt.num_finished == prompt.n:
            metrics.request_params_n.observe(prompt.n)
            metrics.request_max_num_generation_tokens.observe(prompt.longest)


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
