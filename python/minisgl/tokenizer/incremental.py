"""IncrementalDetokenizer: token ids of one stream to text, as they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from minisgl.tokenizer.stop_strings import StopMatcher

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams
    from minisgl.tokenizer.tokenizer import Tokenizer

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class DetokenizerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream's text is made of its token ids."""

    skip_special_tokens: bool = True
    stop: list[str] = []  # the text is cut at the first of these
    # The text of so many ids is shown whatever stands in it; stop strings are looked for behind it.
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    include_stop: bool = False  # the stop string belongs to the text
    # The text stands behind a prompt, so that the first space of a SentencePiece vocabulary belongs
    # to it.
    continues_prompt: bool = False

    @classmethod
    def of(
        cls, params: SamplingParams, *, include_stop: bool = False, continues_prompt: bool = False
    ) -> DetokenizerOptions:
        """The options of a request's answer."""
        return cls(
            skip_special_tokens=params.skip_special_tokens,
            stop=params.stop,
            min_tokens=params.min_tokens,
            include_stop=include_stop,
            continues_prompt=continues_prompt,
        )


class IncrementalDetokenizer:
    """What `push` and `finish` return, put together, is `tokenizer.decode` of all ids, cut at the
    first stop string, however the ids are divided into pushes.

    Incomplete characters and text that may begin a stop string are held; a token costs O(1)
    amortised.
    """

    def __init__(self, tokenizer: Tokenizer, options: DetokenizerOptions) -> None:
        self._table = tokenizer.byte_table(options.skip_special_tokens)
        self._utf8 = _Utf8Decoder("replace")
        self._strip_space = tokenizer.strips_first_space and not options.continues_prompt
        self._matcher = StopMatcher(options.stop) if options.stop else None
        self._min_tokens = options.min_tokens
        self._include_stop = options.include_stop
        # A stop string came: the text is cut before it, and everything later is ignored.
        self.stopped = False
        self.num_tokens = 0  # ids taken so far, up to and with the one that completed a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that may be shown now."""
        if self.stopped:
            return ""
        table = self._table
        if self._matcher is None:
            self.num_tokens += len(token_ids)
            return self._decode(b"".join([table[token_id] for token_id in token_ids]))
        pieces: list[str] = []
        for token_id in token_ids:
            self.num_tokens += 1
            text = self._decode(table[token_id])
            if self.num_tokens > self._min_tokens:
                text = self._match(self._matcher, text)
            pieces.append(text)
            if self.stopped:
                break
        return "".join(pieces)

    def finish(self) -> str:
        """The rest: an incomplete character as U+FFFD, text held for a stop string."""
        if self.stopped:
            return ""
        rest = self._utf8.decode(b"", final=True)
        if self._matcher is None:
            return rest
        text = self._match(self._matcher, rest)
        return text if self.stopped else text + self._matcher.finish()

    def _decode(self, data: bytes) -> str:
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def _match(self, matcher: StopMatcher, text: str) -> str:
        text = matcher.push(text) if text else ""
        if matcher.match is not None:
            self.stopped = True
            if self._include_stop:
                text += matcher.match
        return text
