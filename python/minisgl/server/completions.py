"""POST /v1/completions"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.server import checks
from minisgl.server.endpoint import JsonEndpoint
from minisgl.server.generation import Delta, Generation
from minisgl.server.http import Exchange, send_json
from minisgl.server.logprobs import CompletionLogprobs
from minisgl.server.prompts import CompletionPrompt, encode_prompts
from minisgl.server.schemas import CompletionRequest
from minisgl.server.sse import EventFrame, encode_json, stream_events, usage
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer

if TYPE_CHECKING:
    from minisgl.text.frontend import TextFrontend


class Completions(JsonEndpoint):
    """Completions, streaming or not, of one prompt or several. Choice i is of prompt i // n."""

    decoder = msgspec.json.Decoder(CompletionRequest, strict=False)

    async def answer(self, exchange: Exchange, request: CompletionRequest, arrived: float) -> None:
        """Completes each prompt. Raises ApiError 400, 429 or 503."""
        checks.check_completion(request)
        state = self.state
        text = state.frontend()
        info = state.client.info
        prompts = await encode_prompts(text, request, info)
        wanted = request.max_tokens
        if wanted is msgspec.UNSET:
            wanted = max(checks.DEFAULT_COMPLETION_TOKENS, request.min_tokens or 0)
        jobs = [
            checks.sampling_params(
                request,
                max_tokens=checks.fit(len(prompt.ids), wanted, info.max_model_len, param="prompt"),
                logprobs=request.logprobs,
                prompt_logprobs=request.logprobs if request.echo else None,
            )
            for prompt in prompts
        ]
        bad_words = await text.encode_words(jobs[0].bad_words)
        fields = {
            "id": f"cmpl-{exchange.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": state.model_name,
        }
        with Generation(state.client, text, state.metrics, arrived=arrived) as generation:
            exchange.begin(generation)
            for prompt, params in zip(prompts, jobs, strict=True):
                generation.submit(
                    prompt.ids,
                    params,
                    n=request.n or 1,
                    include_stop=bool(request.include_stop_str_in_output),
                    continues_prompt=True,
                    bad_words=bad_words,
                )
            shaper = ChoiceShaper(text, request, prompts)
            if request.stream:
                frame = EventFrame(fields, request.stream_options, generation)
                await stream_events(exchange, generation, CompletionEvents(frame, shaper))
            else:
                choices = await _collect(generation, shaper, len(prompts) * (request.n or 1))
                await send_json(
                    exchange.send, {**fields, "choices": choices, "usage": usage(generation)}
                )


class ChoiceShaper:
    """Puts the echoed prompt before a choice's first delta, and gives logprobs their shape."""

    def __init__(
        self, text: TextFrontend, request: CompletionRequest, prompts: list[CompletionPrompt]
    ) -> None:
        self._text = text
        self._request = request
        self._prompts = prompts
        self._starts: dict[int, int] = {}  # choice -> characters of its echoed prompt

    def shape(self, delta: Delta, into: CompletionLogprobs | None) -> str:
        """The text that `delta` adds to its choice. Its logprobs are added to `into`."""
        shown = ""
        if delta.index not in self._starts:
            if self._request.echo:
                shown = self._echo(delta, into)
            self._starts[delta.index] = len(shown)
        if into is not None:
            into.add(delta.entries, self._starts[delta.index])
        return shown + delta.text

    def logprobs(self) -> CompletionLogprobs | None:
        """A record for a choice's log probabilities, or None where none were asked for."""
        if self._request.logprobs is None:
            return None
        return CompletionLogprobs(self._text.tokenizer)

    def _echo(self, delta: Delta, into: CompletionLogprobs | None) -> str:
        prompt = self._prompts[delta.index // (self._request.n or 1)]
        shown = prompt.text
        if shown is None:
            skip = self._request.skip_special_tokens is not False
            shown = self._text.tokenizer.decode(prompt.ids, skip_special_tokens=skip)
        if into is not None and delta.prompt_logprobs is not None:
            into.add_prompt(delta.prompt_logprobs, self._offsets(prompt.ids, len(shown)))
        return shown

    def _offsets(self, ids: list[int], length: int) -> list[int]:
        """Characters before each prompt token; special tokens that were added have none."""
        skip = self._request.skip_special_tokens is not False
        detokenizer = IncrementalDetokenizer(
            self._text.tokenizer, DetokenizerOptions(skip_special_tokens=skip)
        )
        offsets, offset = [], 0
        for token_id in ids:
            offsets.append(min(offset, length))
            offset += len(detokenizer.push([token_id]))
        return offsets


async def _collect(
    generation: Generation, shaper: ChoiceShaper, num_choices: int
) -> list[dict[str, Any]]:
    texts: list[list[str]] = [[] for _ in range(num_choices)]
    logprobs = [shaper.logprobs() for _ in range(num_choices)]
    reasons: list[str | None] = [None] * num_choices
    while generation.num_live:
        for delta in await generation.ready():
            texts[delta.index].append(shaper.shape(delta, logprobs[delta.index]))
            reasons[delta.index] = delta.finish_reason
    choices = []
    for index, into in enumerate(logprobs):
        choices.append(
            {
                "index": index,
                "text": "".join(texts[index]),
                "logprobs": None if into is None else into.shown(),
                "finish_reason": reasons[index],
            }
        )
    return choices


class CompletionEvents:
    """Chunks of text; the last of a choice has its finish reason."""

    def __init__(self, frame: EventFrame, shaper: ChoiceShaper) -> None:
        self._frame = frame
        self._shaper = shaper

    def event(self, delta: Delta) -> bytes:
        """The chunk that a delta makes, or b"" where it has nothing to show."""
        into = self._shaper.logprobs()
        text = self._shaper.shape(delta, into)
        if not text and not delta.finish_reason and (into is None or not into.tokens):
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
                frame.tail,
            )
        )

    def last(self) -> bytes:
        """What follows the choices' last chunks: usage where it was asked for, and [DONE]."""
        return self._frame.last()
