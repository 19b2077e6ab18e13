"""AnswerReader: what the engine made of a request, as far as it belongs to the answer. HTTP and LLM
read through it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from minisgl.ipc.messages import Output, PromptLogprob, TokenLogprob
    from minisgl.text.frontend import Detokenizer


class Piece(msgspec.Struct):
    """What an answer has got since its last piece. A struct, as one is made for every output."""

    text: str  # what may be shown now, without a stop token or stop string
    # With the stop token, where one ended the answer; without what came behind a stop string.
    token_ids: list[int]
    logprobs: list[TokenLogprob]  # one per token id, where they were asked for
    finish: str = ""  # "stop" or "length" with the last piece
    prompt_logprobs: list[PromptLogprob] | None = None
    ends_with_stop_token: bool = False

    @property
    def shown_ids(self) -> list[int]:
        """The token ids that have text: a stop token ends it and isn't part of it."""
        return self.token_ids[:-1] if self.ends_with_stop_token else self.token_ids


class AnswerReader:
    """Reads one request's outputs in their order."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self.num_tokens = 0  # in the answer; a stop token is one
        self.finish = ""  # once the last piece was read
        self._detokenizer = detokenizer

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the answer. The engine may not know: the request is to be
        aborted.
        """
        return self._detokenizer.stopped

    def read(self, output: Output) -> Piece | Awaitable[Piece]:
        """The next piece, of an output that has no error: at once where the text is made in this
        process, else to be awaited. Raises what the detokenizer raises.
        """
        token_ids = output.token_ids
        shown = token_ids[:-1] if output.finish == "stop" else token_ids
        text = self._detokenizer.push_here(shown, final=bool(output.finish))
        return self._read_elsewhere(output, shown) if text is None else self._piece(output, text)

    async def _read_elsewhere(self, output: Output, shown: list[int]) -> Piece:
        return self._piece(output, await self._detokenizer.push(shown, final=bool(output.finish)))

    def _piece(self, output: Output, text: str) -> Piece:
        token_ids, logprobs, finish = output.token_ids, output.logprobs or [], output.finish
        by_token = finish == "stop"
        detokenizer = self._detokenizer
        if detokenizer.stopped:
            kept = detokenizer.num_tokens - self.num_tokens
            token_ids, logprobs = token_ids[:kept], logprobs[:kept]
            finish, by_token = "stop", False
        self.finish = finish
        self.num_tokens += len(token_ids)
        return Piece(text, token_ids, logprobs, finish, output.prompt_logprobs, by_token)
