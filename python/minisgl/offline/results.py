"""What LLM makes of prompts: results, and the samples that they are collected in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from minisgl.ipc.messages import Alternative
from minisgl.sampling_params import SamplingParams

if TYPE_CHECKING:
    from minisgl.offline.prompts import PromptRequest
    from minisgl.text.answer import Piece


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log probability under the model's own distribution (natural logarithm)."""

    token_id: int
    logprob: float | None  # None for a prompt's first token, which nothing stands before
    alternatives: list[Alternative]  # (token id, logprob), most likely first


@dataclass(frozen=True)
class CompletionResult:
    """One completion of a prompt."""

    index: int  # 0 to n - 1
    text: str  # without the stop string or stop token
    token_ids: list[int]  # with the stop token, where one ended it
    finish_reason: str  # "stop" or "length"
    logprobs: list[TokenLogprob] | None  # one per token id
    # The stop string, or the one of stop_token_ids, that ended it; None where something else did.
    stop_reason: str | int | None = None
    num_drafts: int = 0  # tokens that were tried as drafts (LLM(speculate="ngram"))
    num_accepted: int = 0  # of these, tokens of the completion


@dataclass(frozen=True)
class RequestResult:
    """What became of one prompt."""

    prompt: str | None  # None where the prompt was token ids
    prompt_token_ids: list[int]
    outputs: list[CompletionResult]
    prompt_logprobs: list[TokenLogprob] | None
    num_cached_tokens: int = 0  # of the prompt: found computed by the first completion


@dataclass(frozen=True)
class EmbeddingResult:
    """An embedding."""

    embedding: list[float]


@dataclass(frozen=True)
class EmbeddingRequestResult:
    """What became of one prompt of embed()."""

    prompt: str | None  # None where the prompt was token ids
    prompt_token_ids: list[int]
    outputs: EmbeddingResult
    num_cached_tokens: int = 0  # of the prompt: found computed


@dataclass(frozen=True)
class ScoringResult:
    """How much two texts are alike."""

    score: float  # -1 to 1


@dataclass(frozen=True)
class ScoringRequestResult:
    """What became of one pair of score()."""

    prompt_token_ids: list[int]  # of both texts, one after the other
    outputs: ScoringResult


class Sample:
    """One completion and what came of it so far."""

    def __init__(self, index: int, request: PromptRequest, params: SamplingParams) -> None:
        self.index = index
        self.request = request
        self.params = params  # the sample's own, where the request's has several
        self.token_ids: list[int] = []
        self.prompt_logprobs: list[TokenLogprob] | None = None
        self.num_cached = 0
        self.drafts = (0, 0)
        self._text: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish = ""
        self._stop_reason: str | int | None = None

    def add(self, piece: Piece) -> None:
        """Takes what the sample's answer has got."""
        self._text.append(piece.text)
        self.token_ids += piece.token_ids
        self.num_cached += piece.num_cached
        self.drafts = piece.drafts if piece.finish else self.drafts
        self._logprobs += [
            TokenLogprob(token_id, logprob, alternatives)
            for token_id, (logprob, alternatives) in zip(
                piece.token_ids, piece.logprobs, strict=False
            )
        ]
        if piece.prompt_logprobs is not None:
            entries = [TokenLogprob(*entry) for entry in piece.prompt_logprobs]
            self.prompt_logprobs = (self.prompt_logprobs or []) + entries
        self._finish, self._stop_reason = piece.finish, piece.stop_reason

    def result(self) -> CompletionResult:
        """What LLM returns of it, once it has ended."""
        return CompletionResult(
            index=self.index,
            text="".join(self._text),
            token_ids=self.token_ids,
            finish_reason=self._finish,
            logprobs=None if self.params.logprobs is None else self._logprobs,
            stop_reason=self._stop_reason,
            num_drafts=self.drafts[0],
            num_accepted=self.drafts[1],
        )


def make_samples(request: PromptRequest) -> list[Sample]:
    """The n completions of one prompt. With a seed, sample i is what seed + i gives alone."""
    params = request.params
    samples = [Sample(0, request, params)]
    for index in range(1, params.n):
        changes: dict[str, Any] = {"prompt_logprobs": None}
        if params.seed is not None:
            changes["seed"] = (params.seed + index) % 2**64
        samples.append(Sample(index, request, msgspec.structs.replace(params, **changes)))
    return samples
