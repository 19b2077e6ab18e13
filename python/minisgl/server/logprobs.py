"""Log probabilities as the two OpenAI APIs show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minisgl.server.choice import TokenEntry
from minisgl.server.errors import bad_request

if TYPE_CHECKING:
    from minisgl.ipc.messages import PromptLogprob
    from minisgl.tokenizer import Tokenizer

LOWEST = -9999.0  # JSON has no -Infinity
MAX_PROMPT_LOGPROBS = 2**22  # per request; one takes some hundred bytes until the answer is sent


def finite(logprob: float) -> float:
    """The log probability, or LOWEST where it is less: JSON has no -Infinity."""
    return max(logprob, LOWEST)


def token_text(data: bytes) -> str:
    """A token's text; one that is only a part of a character as OpenAI writes it,
    "bytes:\\xe2\\x80".
    """
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def chat_logprobs(tokenizer: Tokenizer, entries: Sequence[TokenEntry]) -> dict[str, Any]:
    """{"content": [{token, logprob, bytes, top_logprobs}]}"""

    def shown(token_id: int, logprob: float) -> dict[str, Any]:
        """The object of the answer: OpenAI's lists, one entry per token."""
        data = tokenizer.token_bytes(token_id)
        return {"token": token_text(data), "logprob": finite(logprob), "bytes": list(data)}

    content = [
        {
            **shown(entry.token_id, entry.logprob),
            "top_logprobs": [shown(token_id, logprob) for token_id, logprob in entry.top],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def check_prompt_logprobs(num_tokens: int, num_top: int) -> None:
    """ApiError 400 where the log probabilities of so many prompt tokens, counted once per choice,
    would take too much memory.
    """
    count = num_tokens * (num_top + 1)
    if count > MAX_PROMPT_LOGPROBS:
        raise bad_request(
            f"The request asks for too many log probabilities of prompt tokens ({count}: tokens "
            f"times choices times alternatives; limit {MAX_PROMPT_LOGPROBS}).",
            param="prompt_logprobs",
        )


def prompt_logprobs(
    tokenizer: Tokenizer, prompt: Sequence[PromptLogprob], num_top: int
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's list, one entry per prompt token: {token id: {logprob, rank, decoded_token}} with the
    token itself first and then the `num_top` most likely; null for the first token. The rank of a
    token that isn't one of those is null.
    """
    shown: list[dict[str, dict[str, Any]] | None] = []
    for token_id, logprob, top in prompt:
        if logprob is None:
            shown.append(None)
            continue
        entries = {token_id: _ranked(tokenizer, token_id, logprob, None)}
        for rank, (other_id, other) in enumerate(top[:num_top], 1):
            entries[other_id] = _ranked(tokenizer, other_id, other, rank)
        shown.append({str(key): entry for key, entry in entries.items()})
    return shown


def _ranked(
    tokenizer: Tokenizer, token_id: int, logprob: float, rank: int | None
) -> dict[str, Any]:
    text = token_text(tokenizer.token_bytes(token_id))
    return {"logprob": finite(logprob), "rank": rank, "decoded_token": text}


class CompletionLogprobs:
    """{tokens, token_logprobs, top_logprobs, text_offset}, filled from a prompt that is echoed and
    from deltas.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int) -> None:
        """`num_top`: alternatives per token at most."""
        self._tokenizer = tokenizer
        self._num_top = num_top
        self.tokens: list[str] = []
        self.token_logprobs: list[float | None] = []
        self.top_logprobs: list[dict[str, float] | None] = []
        self.text_offset: list[int] = []

    def add_prompt(self, prompt: Sequence[PromptLogprob], offsets: Sequence[int]) -> None:
        """The first token has no logprob: null."""
        for (token_id, logprob, top), offset in zip(prompt, offsets, strict=True):
            self._add(token_id, logprob, top, offset)

    def add(self, entries: Sequence[TokenEntry], start: int) -> None:
        """`start`: characters that stand before the choice's own text."""
        for entry in entries:
            self._add(entry.token_id, entry.logprob, entry.top, start + entry.offset)

    def _add(
        self,
        token_id: int,
        logprob: float | None,
        top: Sequence[tuple[int, float]],
        offset: int,
    ) -> None:
        text = token_text(self._tokenizer.token_bytes(token_id))
        self.tokens.append(text)
        self.text_offset.append(offset)
        if logprob is None:
            self.token_logprobs.append(None)
            self.top_logprobs.append(None)
            return
        alternatives: dict[str, float] = {}
        for other_id, other in top[: self._num_top]:
            alternatives.setdefault(
                token_text(self._tokenizer.token_bytes(other_id)), finite(other)
            )
        alternatives.setdefault(text, finite(logprob))
        self.token_logprobs.append(finite(logprob))
        self.top_logprobs.append(alternatives)

    def shown(self) -> dict[str, Any]:
        """The object of the answer: OpenAI's lists, one entry per token."""
        return {
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        }
