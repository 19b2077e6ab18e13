"""AnswerReader: what the engine made of a request, as far as it belongs to the answer. HTTP and LLM
read through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from minisgl.ipc.messages import Output, PromptLogprob, TokenLogprob
    from minisgl.text.detokenizer import Detokenizer


class Piece(msgspec.Struct):
    """What an answer has got since its last piece. A struct, as one is made for every output."""

    text: str  # what may be shown now, without a stop token or stop string
    # With the stop token, where one ended the answer; without what came behind a stop string.
    token_ids: list[int]
    logprobs: list[TokenLogprob]  # one per token id, where they were asked for
    finish: str = ""  # "stop" or "length" with the last piece
    prompt_logprobs: list[PromptLogprob] | None = None
    ends_with_stop_token: bool = False
    # With the last piece, where a stop string or a stop token of the request ended the answer.
    stop_reason: str | int | None = None
    num_cached: int = 0  # as Output's
    drafts: tuple[int, int] = (0, 0)  # as Output's

    @property
    def shown_ids(self) -> list[int]:
        """The token ids that have text: a stop token ends it and isn't part of it."""
        return self.token_ids[:-1] if self.ends_with_stop_token else self.token_ids


class AnswerReader:
    """Reads one request's outputs in their order."""

    def __init__(self, detokenizer: Detokenizer, stop_token_ids: Sequence[int] = ()) -> None:
        """`stop_token_ids`: those that the request names, not the model's own ends."""
        self.num_tokens = 0  # in the answer; a stop token is one
        self.finish = ""  # once the last piece was read
        self._detokenizer = detokenizer
        self._stop_token_ids = stop_token_ids

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer. The engine may not know: the request is to be
        aborted.
        """
        return self._detokenizer.match is not None

    def read(self, output: Output) -> Piece | Awaitable[Piece]:
        """The next piece, of an output that has no error: at once where the text is made in this
        process, else to be awaited. Raises what the detokenizer raises.
        """
        shown, stop_token = output.token_ids, None
        if output.finish == "stop" and shown:
            shown, stop_token = shown[:-1], shown[-1]
        final = bool(output.finish)
        text = self._detokenizer.push_here(shown, final=final, stop_token=stop_token)
        if text is None:
            return self._read_elsewhere(output, shown, stop_token)
        return self._piece(output, text)

    async def _read_elsewhere(
        self, output: Output, shown: list[int], stop_token: int | None
    ) -> Piece:
        final = bool(output.finish)
        text = await self._detokenizer.push(shown, final=final, stop_token=stop_token)
        return self._piece(output, text)

    def _piece(self, output: Output, text: str) -> Piece:
        token_ids, logprobs, finish = output.token_ids, output.logprobs or [], output.finish
        by_token = finish == "stop"
        stop_reason: str | int | None = None
        detokenizer = self._detokenizer
        if detokenizer.match is not None:
            kept = detokenizer.num_tokens - self.num_tokens
            token_ids, logprobs = token_ids[:kept], logprobs[:kept]
            finish, by_token, stop_reason = "stop", False, detokenizer.match
        elif by_token and token_ids and token_ids[-1] in self._stop_token_ids:
            stop_reason = token_ids[-1]
        self.finish = finish
        self.num_tokens += len(token_ids)
        return Piece(
            text,
            token_ids,
            logprobs,
            finish,
            output.prompt_logprobs,
            by_token,
            stop_reason,
            output.num_cached,
            output.drafts,
        )
