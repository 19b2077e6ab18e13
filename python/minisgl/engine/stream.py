"""One live request in the server: what was asked, what was received, and what waits to be read."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from minisgl.ipc.messages import EngineInfo, ErrorCode, Output, Submit

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams


class TokenStream:
    """The outputs of one request, for one reader.

    It keeps the request with its seed and the tokens received, so that another engine could go on
    where this one ended. What it holds is bounded by the request's max_tokens, however slow the
    reader is.
    """

    def __init__(
        self, request: Submit, params: SamplingParams, abort: Callable[[int], None]
    ) -> None:
        self.request = request
        self.params = params
        self.received: list[int] = []  # token ids, read or not
        self.finish = ""  # the reason, once the end has arrived
        self.num_deaths = 0  # of engines that had this request
        self._received_at_death = -1  # tokens; -1: no engine has died under it
        self._send_abort = abort
        self._pending: Output | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._exhausted = False

    @property
    def id(self) -> int:
        """The request's id in the engine."""
        return self.request.id

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of the prompt as it was submitted."""
        return self.request.prompt

    @property
    def finished(self) -> bool:
        """Whether the last output has arrived (it may not have been read yet)."""
        return bool(self.finish)

    @property
    def replaying(self) -> bool:
        """Whether its engine has died and no other one has gone on with it yet."""
        return len(self.received) == self._received_at_death

    def note_death(self) -> None:
        """The engine that had it died."""
        self.num_deaths += 1
        self._received_at_death = len(self.received)

    def resumption(self) -> Submit:
        """The request for an engine that is to go on where the stream stopped."""
        if not self.received:
            return self.request
        return msgspec.structs.replace(
            self.request,
            prompt=self.request.prompt + self.received,
            num_resumed=len(self.received),
            max_tokens=self.request.max_tokens - len(self.received),
            prompt_logprobs=-1,  # they came with the first token
        )

    async def next(self) -> Output:
        """Everything that arrived since the last call, in one output; waits when nothing did.

        The last one has a `finish`; after it StopAsyncIteration is raised.
        """
        if self._exhausted:
            raise StopAsyncIteration
        while self._pending is None:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        output, self._pending = self._pending, None
        self._exhausted = bool(output.finish)
        return output

    def abort(self) -> None:
        """Ends the request now: the reader gets finish "abort". Does nothing when it has ended
        already.
        """
        if not self.finish:
            self._send_abort(self.id)
            self.deliver(Output(self.id, [], "abort"))

    def fail(self, code: ErrorCode, sentence: str) -> None:
        """Ends the stream with an error. Does nothing when it has ended already."""
        if not self.finish:
            self.deliver(Output(self.id, [], "error", code, sentence))

    def deliver(self, output: Output) -> None:
        """Takes an output for the reader; those after the end are left out."""
        if self.finish:
            return
        self.finish = output.finish
        self.received += output.token_ids
        if self._pending is None:
            self._pending = output
        else:
            self._pending.merge(output)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def make_request(
    request_id: int,
    prompt_ids: list[int],
    params: SamplingParams,
    info: EngineInfo,
    end_ids: Sequence[int] = (),
) -> Submit:
    """The engine's request. ValueError when it asks for what this model can't do.

    `end_ids` are the ends that the tokenizer's files name; the engine may not know them all.
    """
    if not prompt_ids:
        raise ValueError("the prompt is empty")
    if min(prompt_ids) < 0 or max(prompt_ids) >= info.vocab_size:
        bad = next(token for token in prompt_ids if not 0 <= token < info.vocab_size)
        raise ValueError(f"prompt token ids must be between 0 and {info.vocab_size - 1}, got {bad}")
    if len(prompt_ids) + params.max_tokens > info.max_model_len:
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens and max_tokens is {params.max_tokens}, "
            f"together more than the {info.max_model_len} tokens that a request may have"
        )
    params.check_tokens(info.vocab_size)
    more_ends = [] if params.ignore_eos else sorted(set(end_ids) - set(info.eos_token_ids))
    return Submit(
        id=request_id,
        prompt=prompt_ids,
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        stop_token_ids=[*params.stop_token_ids, *more_ends],
        logprobs=-1 if params.logprobs is None else params.logprobs,
        prompt_logprobs=-1 if params.prompt_logprobs is None else params.prompt_logprobs,
        temperature=params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        seed=random.getrandbits(64) if params.seed is None else params.seed,
        logit_bias=sorted(params.logit_bias.items()),
    )
