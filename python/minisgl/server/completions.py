"""POST /v1/completions"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server.choice import Answer, Delta
from minisgl.server.completion_core import prepare_completion
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.http import Exchange, send_json
from minisgl.server.logprobs import CompletionLogprobs, prompt_logprobs
from minisgl.server.prompts import CompletionPrompt, Echo, echoes
from minisgl.server.schemas import CompletionRequest
from minisgl.server.sse import EventFrame, encode_json, stream_events, usage

if TYPE_CHECKING:
    from minisgl.ipc.messages import PromptLogprob
    from minisgl.text.parts import Part
    from minisgl.tokenizer import Tokenizer


class Completions(JsonEndpoint):
    """Completions, streaming or not, of one prompt or several. Choice i is of prompt i // n."""

    decoder = msgspec.json.Decoder(CompletionRequest, strict=False)

    async def answer(self, exchange: Exchange, request: CompletionRequest, arrived: float) -> None:
        """Completes each prompt. Raises ApiError 400, 429 or 503."""
        state = self.state
        job = await prepare_completion(state, request, exchange.api_key)
        text, prompts = job.text, job.prompts
        echoed = await echoes(text, request, prompts) if request.echo else None
        fields = {
            "id": f"cmpl-{exchange.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.answer_name(request.model),
            "system_fingerprint": None,
        }
        with self.generation(exchange, request, text, arrived) as generation:
            exchange.begin(generation)
            job.submit(generation)
            shaper = ChoiceShaper(text.tokenizer, request, prompts, echoed)
            if request.stream:
                frame = EventFrame(fields, request.stream_options, generation)
                await stream_events(exchange, generation, CompletionEvents(frame, shaper))
                return
            answers = await generation.collect()
            choices: Any
            if job.scores is None:
                choices = shaper.choices(answers)
            else:  # this may take long
                choices = await text.off_loop(_encoded_choices, shaper, answers)
            await send_json(
                exchange.send, {**fields, "choices": choices, "usage": usage(generation)}
            )


def _encoded_choices(shaper: ChoiceShaper, answers: list[Answer]) -> msgspec.Raw:
    return msgspec.Raw(encode_json(shaper.choices(answers)))


class ChoiceShaper:
    """Makes choices, whole or piece by piece, of what was generated, with what belongs to their
    prompts.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        request: CompletionRequest,
        prompts: list[CompletionPrompt],
        echoed: list[Echo] | None,
    ) -> None:
        """`echoed` has an entry per prompt, where answers are to begin with them."""
        self._tokenizer = tokenizer
        self._request = request
        self._prompts = prompts
        self._echoed = echoed
        self.has_logprobs = request.logprobs is not None
        self.has_token_ids = bool(request.return_token_ids)

    def choices(self, answers: list[Answer]) -> list[dict[str, Any]]:
        """The choices of a whole answer."""
        choices = []
        for index, answer in enumerate(answers):
            echo = self.echo(index)
            into = self.logprobs()
            if into is not None:
                start = self.add_echo(into, echo, answer.prompt_logprobs)
                into.add(answer.entries, start)
            text = "".join(answer.texts)
            choice = {
                "index": index,
                "text": text if echo is None else echo.text + text,
                "logprobs": None if into is None else into.shown(),
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
            }
            choice |= self.about_prompt(index, answer.prompt_logprobs)
            if self.has_token_ids:
                choice["token_ids"] = answer.token_ids
            choices.append(choice)
        return choices

    def echo(self, index: int) -> Echo | None:
        """The prompt with which choice `index` begins."""
        return None if self._echoed is None else self._echoed[index // (self._request.n or 1)]

    def logprobs(self) -> CompletionLogprobs | None:
        """A record for a choice's log probabilities, or None where none were asked for."""
        if self._request.logprobs is None:
            return None
        return CompletionLogprobs(self._tokenizer, self._request.logprobs)

    def add_echo(
        self, into: CompletionLogprobs, echo: Echo | None, scores: list[PromptLogprob] | None
    ) -> int:
        """Adds an echoed prompt's log probabilities. Returns the number of its characters."""
        if echo is None:
            return 0
        if scores is not None and echo.offsets is not None:
            into.add_prompt(scores, echo.offsets)
        return len(echo.text)

    def about_prompt(self, index: int, scores: list[PromptLogprob] | None) -> dict[str, Any]:
        """What was asked for of the prompt of choice `index`: {prompt_token_ids, prompt_logprobs},
        each where it was.
        """
        about: dict[str, Any] = {}
        if self.has_token_ids:
            about["prompt_token_ids"] = self._prompts[index // (self._request.n or 1)].ids
        if self._request.prompt_logprobs is not None:
            about["prompt_logprobs"] = prompt_logprobs(
                self._tokenizer, scores or [], self._request.prompt_logprobs
            )
        return about


class CompletionEvents:
    """Chunks of text; the last of a choice has its finish reason."""

    def __init__(self, frame: EventFrame, shaper: ChoiceShaper) -> None:
        self._frame = frame
        self._shaper = shaper
        self._has_logprobs = shaper.has_logprobs
        self._has_token_ids = shaper.has_token_ids
        self._starts: dict[int, int] = {}  # choice -> characters of its echoed prompt

    def event(self, delta: Delta) -> bytes:
        """The chunk that a delta makes, or b"" where it has nothing to show."""
        text = delta.text
        into = self._shaper.logprobs() if self._has_logprobs else None
        more = b""
        if delta.index not in self._starts:
            text, more = self._begin(delta, into)
        if into is not None:
            into.add(delta.entries, self._starts[delta.index])
        if self._has_token_ids and delta.token_ids:
            more += b',"token_ids":' + encode_json(delta.token_ids)
        if delta.finish_reason is not None:
            more += b',"stop_reason":' + encode_json(delta.stop_reason)
        elif not text and not more and (into is None or not into.tokens):
            return b""
        frame = self._frame
        return b"".join(
            (
                frame.head,
                b"%d" % delta.index,
                b',"text":',
                encode_json(text),
                b',"logprobs":',
                b"null" if into is None else encode_json(into.shown()),
                b',"finish_reason":',
                encode_json(delta.finish_reason),
                more,
                frame.tail,
            )
        )

    def around_text(self, index: int, like: Part | None) -> tuple[bytes, ...] | None:
        """As TextEvents says: nothing is parsed."""
        frame = self._frame
        if self._has_logprobs or self._has_token_ids or frame.changes:
            return None
        after = b'","logprobs":null,"finish_reason":null' + frame.tail
        return frame.head + b'%d,"text":"' % index, after

    def _begin(self, delta: Delta, into: CompletionLogprobs | None) -> tuple[str, bytes]:
        """The text of a choice's first delta, and the fields that stand in its chunk alone."""
        shaper = self._shaper
        echo = shaper.echo(delta.index)
        self._starts[delta.index] = 0 if echo is None else len(echo.text)
        if into is not None:
            shaper.add_echo(into, echo, delta.prompt_logprobs)
        about = shaper.about_prompt(delta.index, delta.prompt_logprobs)
        more = b"," + encode_json(about)[1:-1] if about else b""
        return (delta.text if echo is None else echo.text + delta.text), more

    def last(self) -> bytes:
        """What follows the choices' last chunks: usage where it was asked for, and [DONE]."""
        return self._frame.last()
