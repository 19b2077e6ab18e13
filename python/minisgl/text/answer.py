"""AnswerReader: what the engine made of a request, as far as it belongs to the answer. HTTP and LLM
read through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minisgl.ipc.messages import Output, PromptLogprob, TokenLogprob
    from minisgl.text.frontend import Detokenizer


@dataclass(slots=True)
class Piece:
    """What an answer has got since its last piece."""

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

    async def read(self, output: Output) -> Piece:
        """The next piece, of an output that has no error. Raises what the detokenizer raises."""
        token_ids, logprobs = output.token_ids, output.logprobs or []
        by_token = output.finish == "stop"
        shown = token_ids[:-1] if by_token else token_ids
        detokenizer = self._detokenizer
        text = await detokenizer.push(shown, final=bool(output.finish))
        self.finish = output.finish
        if detokenizer.stopped:
            kept = detokenizer.num_tokens - self.num_tokens
            token_ids, logprobs = token_ids[:kept], logprobs[:kept]
            self.finish, by_token = "stop", False
        self.num_tokens += len(token_ids)
        return Piece(text, token_ids, logprobs, self.finish, output.prompt_logprobs, by_token)
