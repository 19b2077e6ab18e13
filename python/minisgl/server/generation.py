"""One HTTP request's generation: its choices, their text as it becomes ready, usage, and an abort
that is never forgotten.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from minisgl.engine.api import EngineBusy, EngineUnavailable, PromptShape
from minisgl.sampling_params import ParameterError
from minisgl.server import errors
from minisgl.server.choice import Answer, Choice, Delta, PromptChoices
from minisgl.server.metrics import Metrics
from minisgl.server.plain_text import PlainText
from minisgl.text.answer import Piece
from minisgl.text.detokenizer import LocalDetokenizer
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from minisgl.engine.api import EngineApi
    from minisgl.ipc.messages import Output, Standing
    from minisgl.sampling_params import SamplingParams
    from minisgl.server.stream_shape import TextEvents
    from minisgl.text.formats import Parsing
    from minisgl.text.frontend import TextFrontend


class AskedPrompt(NamedTuple):
    """A prompt, what is asked for behind it, and how its text is made."""

    ids: list[int]
    params: SamplingParams
    options: DetokenizerOptions


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
        adapter: int = 0,
    ) -> None:
        self._client = client
        self._text = text
        self._metrics = metrics
        self._arrived = arrived  # time.perf_counter()
        self._prefix_salt = prefix_salt
        self._standing = standing
        self._session = session
        self._adapter = adapter
        self._choices: list[Choice] = []
        self._news: list[Choice] = []  # those whose streams have something
        self._waiter: asyncio.Future[None] | None = None
        self._on_news: Callable[[], None] | None = None
        self.on_answer: Callable[[Choice], None] | None = None  # told of each that has its end
        self._counts_thoughts = False
        self.text_is_here = True  # no other process makes it
        self.num_prompt_tokens = 0
        self.num_live = 0

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        for choice in self._choices:
            choice.stream.listen(None)
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
    def drafts(self) -> tuple[int, int]:
        """Drafts that were tried for choices that have ended, and those of them that held."""
        drafts = [choice.stream.drafts for choice in self._choices]
        return sum(tried for tried, _ in drafts), sum(held for _, held in drafts)

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
        prompts: Sequence[AskedPrompt],
        *,
        n: int = 1,
        bad_words: Sequence[list[int]] = (),
        score_each: bool = False,
        parsing: Parsing | None = None,
    ) -> None:
        """Begins `n` choices for each prompt; `bad_words` is what params.bad_words is in tokens. A
        prompt's log probabilities come with its first choice, or with `score_each` with each.
        `parsing`: how the text is taken apart; None: it isn't.

        Raises ApiError 400, also for more than would be taken if nothing else were live, 429 or
        503; the context manager ends what was begun.
        """
        shapes = [
            PromptShape(
                len(one.ids), n, shared=one.params.prompt_logprobs is None or not score_each
            )
            for one in prompts
        ]
        try:
            refusal = self._client.refusal(shapes)
        except EngineUnavailable as error:
            raise errors.refused(error) from None
        if refusal:
            raise errors.bad_request(f"This request can never be served: {refusal}")
        for one in prompts:
            self._submit(one, n, bad_words, score_each, parsing)

    def _submit(
        self,
        prompt: AskedPrompt,
        n: int,
        bad_words: Sequence[list[int]],
        score_each: bool,
        parsing: Parsing | None,
    ) -> None:
        prompt_ids, params, options = prompt
        if self._adapter:
            params = msgspec.structs.replace(params, adapter=self._adapter)
        self.num_prompt_tokens += len(prompt_ids)
        choices = PromptChoices(n)
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
            except (EngineBusy, EngineUnavailable, ParameterError) as error:
                raise errors.refused(error) from None
            detokenizer = self._text.detokenizer(options)
            self.text_is_here &= isinstance(detokenizer, LocalDetokenizer)
            choice = Choice(
                len(self._choices),
                choices,
                stream,
                detokenizer,
                None
                if params.logprobs is None and not counts_thoughts
                else IncrementalDetokenizer(
                    self._text.tokenizer, msgspec.structs.replace(options, stop=[])
                ),
                None if parsing is None else parsing.reader(locates=params.logprobs is not None),
            )
            stream.listen(partial(self._note_news, choice))
            self._choices.append(choice)
            self.num_live += 1
            self._metrics.prompt_tokens += len(prompt_ids)
            self._metrics.request_prompt_tokens.observe(len(prompt_ids))

    async def ready(self) -> list[Delta]:
        """Waits until a choice has something, then takes all that the choices have. Raises ApiError
        when one failed.
        """
        if not self._news:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.text_is_here:
            return self.take()
        return [await self._take_elsewhere(choice) for choice in self._take_news()]

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Who is called, instead of ready()'s caller, whenever choices have something where they
        had nothing, now to begin with; None: nobody.
        """
        if len(self._choices) == 1:  # its stream tells the listener without a detour
            choice = self._choices[0]
            self._news.clear()
            choice.stream.listen(listener or partial(self._note_news, choice))
            return
        self._on_news = listener
        if listener is not None and self._news:
            listener()

    def plain_text(self, events: TextEvents) -> PlainText | None:
        """A shorter way to the events of the only choice's text; None where there is no such
        way.
        """
        if len(self._choices) != 1:
            return None
        return PlainText.of(self._choices[0], events, self._metrics)

    def take(self) -> list[Delta]:
        """All that the choices have, where their text is made in this process. Raises ApiError when
        one failed.
        """
        if len(self._choices) == 1:
            self._news.clear()
            return [self._take(self._choices[0])]
        return [self._take(choice) for choice in self._take_news()]

    async def collect(self) -> list[Answer]:
        """All choices, once they have ended. Raises ApiError when one failed."""
        answers = [Answer() for _ in self._choices]
        while self.num_live:
            for delta in await self.ready():
                answers[delta.index].add(delta)
        return answers

    def _note_news(self, choice: Choice) -> None:
        if choice.finished:  # by a stop string: what its stream still says is of no interest
            return
        self._news.append(choice)
        if len(self._news) > 1:
            return
        if self._on_news is not None:
            self._on_news()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_news(self) -> list[Choice]:
        """Whose turn it is, in the order of the choices."""
        # One may have ended by a stop string while its text was awaited.
        news, self._news = [choice for choice in self._news if not choice.finished], []
        if len(news) > 1:
            news.sort(key=lambda choice: choice.index)
        return news

    def _take(self, choice: Choice) -> Delta:
        output = self._take_output(choice)
        try:
            piece = choice.read(output)
            assert isinstance(piece, Piece), "the text is made elsewhere"
            return choice.take(piece)
        finally:
            if choice.finished:
                self._count_finished(choice, output)

    async def _take_elsewhere(self, choice: Choice) -> Delta:
        output = self._take_output(choice)
        try:
            piece = choice.read(output)
            return choice.take(piece if isinstance(piece, Piece) else await piece)
        finally:
            if choice.finished:
                self._count_finished(choice, output)

    def _take_output(self, choice: Choice) -> Output:
        """The next one, whose tokens are counted and timed."""
        output = choice.stream.take()
        count = len(output.token_ids)
        if count:
            metrics = self._metrics
            now = time.perf_counter()
            if not choice.first_token_at:
                choice.first_token_at = now
                metrics.time_to_first_token.observe(now - self._arrived)
            else:
                metrics.inter_token_latency.observe((now - choice.last_token_at) / count, count)
            choice.last_token_at = now
            metrics.generation_tokens += count
        return output

    def _count_finished(self, choice: Choice, output: Output) -> None:
        self.num_live -= 1
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
