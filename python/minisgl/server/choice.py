"""One choice of an answer: what clients see of the engine's outputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from minisgl.server import errors
from minisgl.text.answer import AnswerReader, Piece

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from minisgl.engine.stream import TokenStream
    from minisgl.ipc.messages import Output, PromptLogprob
    from minisgl.text.detokenizer import Detokenizer
    from minisgl.text.parts import Part
    from minisgl.text.parts_reader import PartsReader
    from minisgl.tokenizer import IncrementalDetokenizer


@dataclass(slots=True)
class TokenEntry:
    """A generated token's log probability. `offset`: characters of the choice's text that stand
    before it.
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]  # most likely first
    offset: int


class Delta(msgspec.Struct):
    """What a choice has got since its last delta. `finish_reason` with its last: "stop", "length"
    or, where the answer calls tools and wasn't cut, "tool_calls". A struct, as one is made for
    every output.
    """

    index: int
    text: str
    entries: list[TokenEntry] = []
    finish_reason: str | None = None
    # With the first delta, where they were asked for.
    prompt_logprobs: list[PromptLogprob] | None = None
    token_ids: list[int] = []  # with a stop token
    # With the last, where a stop string or a stop token that the client named ended the choice:
    # that string, or the token's id.
    stop_reason: str | int | None = None
    parts: list[Part] | None = None  # what `text` comes to; None: nothing is parsed, it is content
    # Where log probabilities were asked for: how many characters of the choice's text had been read
    # when each of the parts was certain to its end.
    part_ends: list[int] = []


@dataclass(slots=True)
class Answer:
    """A choice from its beginning to its end."""

    texts: list[str] = field(default_factory=list)  # parts of the text
    entries: list[TokenEntry] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    prompt_logprobs: list[PromptLogprob] | None = None
    parts: list[Part] | None = None  # as Delta's, of the whole text

    def add(self, delta: Delta) -> None:
        """Takes the choice's next delta."""
        self.texts.append(delta.text)
        self.entries += delta.entries
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        if delta.parts is not None:
            if self.parts is None:
                self.parts = []
            self.parts += delta.parts


@dataclass(slots=True)
class PromptChoices:
    """What the choices of one prompt have come to."""

    n: int
    num_finished: int = 0
    longest: int = 0  # tokens of those that finished


class Choice:
    """One of the engine's requests: makes deltas of its outputs."""

    def __init__(
        self,
        index: int,
        prompt: PromptChoices,
        stream: TokenStream,
        detokenizer: Detokenizer,
        offsets: IncrementalDetokenizer | None,
        parts: PartsReader | None,
    ) -> None:
        self.index = index
        self.prompt = prompt
        self.stream = stream
        self.finished = False
        self.finish_reason = ""  # with `finished`: "stop", "length", "abort" or "error"
        self.queued_seconds: float | None = None  # before its first step, once it has ended
        self.first_token_at = 0.0  # time.perf_counter(); 0: none yet
        self.last_token_at = 0.0
        self._text_length = 0  # characters given out
        self.detokenizer = detokenizer
        self.reader = AnswerReader(detokenizer, stream.request.params.stop_token_ids)
        # The same text without regard to stop strings; None: no logprobs were asked for, and no
        # thoughts' tokens are counted.
        self._offsets = offsets
        self.parts = parts  # None: nothing is parsed
        self._offset = 0
        self._held: list[TokenEntry] = []  # their text isn't out yet

    @property
    def is_plain(self) -> bool:
        """Nothing was asked for about each token."""
        return self.stream.request.params.logprobs is None

    @property
    def only_parses(self) -> bool:
        """Whether tokens before the last add no more than parts: nothing but the engine ends the
        choice.
        """
        parts = self.parts
        return parts is not None and parts.parallel and not self.stream.request.params.stop

    def parse(self, text: str, token_ids: Sequence[int]) -> list[Part]:
        """The parts that these tokens' text adds to a choice that `only_parses`."""
        assert self.parts is not None
        return self.parts.read(text, self._lengths(token_ids))

    @property
    def num_tokens(self) -> int:
        """Generated so far, a stop token included."""
        return self.reader.num_tokens

    @property
    def shown_ids(self) -> list[int]:
        """The answer's token ids so far, without a stop token that ended it."""
        ids = self.stream.received[: self.num_tokens]
        by_token = self.answer_finish == "stop" and not self.reader.stopped
        if self.parts is not None and self.parts.ended:
            by_token = False
        return ids[:-1] if by_token else ids

    @property
    def num_reasoning_tokens(self) -> int:
        """Of the tokens so far, those of thoughts."""
        return 0 if self.parts is None else self.parts.num_reasoning

    @property
    def answer_finish(self) -> str:
        """Either "stop" or "length", once the answer is complete; "" before."""
        return self.reader.finish

    def read(self, output: Output) -> Piece | Awaitable[Piece]:
        """What the engine's next output adds to the answer, as AnswerReader.read() has it. Raises
        ApiError when the engine ended the request with an error, or aborted it.
        """
        if output.finish in ("error", "abort"):
            self.finished = True
            raise errors.engine_error(output)
        self.finished = bool(output.finish)
        return self.reader.read(output)

    def take(self, piece: Piece) -> Delta:
        """What clients see of a piece."""
        if self.reader.stopped and not self.finished:
            self.finished = True
            self.stream.abort()
        text = piece.text
        delta = Delta(
            self.index,
            text,
            [],
            piece.finish or None,
            piece.prompt_logprobs,
            piece.token_ids,
            piece.stop_reason,
        )
        lengths = self._lengths(piece.shown_ids)
        if lengths is not None:
            self._text_length += len(text)
            self._hold(piece, lengths)
            delta.entries = self._release()
        if self.parts is not None:
            self._parse(delta, lengths, self.parts)
        return delta

    def _lengths(self, token_ids: Sequence[int]) -> list[int] | None:
        """Characters of each token, where they count."""
        if self._offsets is None:
            return None
        return [len(self._offsets.push([token_id])) for token_id in token_ids]

    def _parse(self, delta: Delta, lengths: list[int] | None, parts: PartsReader) -> None:
        delta.parts = parts.read(delta.text, lengths, final=delta.finish_reason is not None)
        delta.part_ends = parts.part_ends
        if parts.ended:
            self.reader.finish = delta.finish_reason = "stop"
            if not self.finished:
                self.finished = True
                self.stream.abort()
        if delta.finish_reason == "stop" and parts.num_calls:
            delta.finish_reason = "tool_calls"

    def _hold(self, piece: Piece, lengths: list[int]) -> None:
        tokens = zip(piece.shown_ids, piece.logprobs, lengths, strict=False)
        for token_id, (logprob, top), length in tokens:
            self._held.append(TokenEntry(token_id, logprob, top, self._offset))
            self._offset += length

    def _release(self) -> list[TokenEntry]:
        # A token goes out with its text. At the end the rest goes too, but for the tokens of a stop
        # string, whose text was cut off.
        if self.finished and not self.reader.stopped:
            released, self._held = self._held, []
            return released
        count = 0
        while count < len(self._held) and self._held[count].offset < self._text_length:
            count += 1
        released, self._held = self._held[:count], self._held[count:]
        return released
