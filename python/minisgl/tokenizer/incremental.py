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
    from minisgl.tokenizer.token_bytes import TokenBytes
    from minisgl.tokenizer.tokenizer import Tokenizer
    from minisgl.tokenizer.whole_texts import WholeTexts

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class DetokenizerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a stream's text is made of its token ids."""

    skip_special_tokens: bool = True
    shown: list[str] = []  # special tokens that aren't skipped, by their texts
    # The text is cut at the first of these. One with a special token's text in it is looked for in
    # the text with special tokens, shown or not.
    stop: list[str] = []
    # The text of so many ids is shown whatever stands in it; stop strings are looked for behind it.
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    include_stop: bool = False  # the stop string belongs to the text
    # The text stands behind a prompt, so that the first space of a SentencePiece vocabulary belongs
    # to it.
    continues_prompt: bool = False
    begun: bytes = b""  # the prompt's last bytes, where they begin a character that isn't complete

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        *,
        include_stop: bool = False,
        continues_prompt: bool = False,
        begun: bytes = b"",
        shown: Sequence[str] = (),
    ) -> DetokenizerOptions:
        """The options of a request's answer."""
        return cls(
            skip_special_tokens=params.skip_special_tokens,
            stop=params.stop,
            min_tokens=params.min_tokens,
            include_stop=include_stop,
            continues_prompt=continues_prompt,
            begun=begun,
            shown=list(shown),
        )


class IncrementalDetokenizer:
    """What `push` and `finish` return, put together, is `tokenizer.decode` of all ids, cut at the
    first stop string, however the ids are divided into pushes; but a character that is incomplete
    at the end is left out.

    Incomplete characters and text that may begin a stop string are held; a token costs O(1)
    amortised.
    """

    def __init__(self, tokenizer: Tokenizer, options: DetokenizerOptions) -> None:
        self._table = tokenizer.byte_table(options.skip_special_tokens, options.shown)
        self._utf8 = _Utf8Decoder("replace")
        self._utf8.decode(options.begun)
        self._strip_space = tokenizer.strips_first_space and not options.continues_prompt
        self._matcher: StopMatcher | None = None
        # The bytes of all tokens, where a stop string has a special token in it.
        self._all_bytes: TokenBytes | None = None
        if options.stop:
            stop = tokenizer.stop_strings(tuple(options.stop))
            self._matcher = StopMatcher(stop)
            if stop.longest_seeing:
                self._all_bytes = tokenizer.byte_table(skip_special_tokens=False)
        self._min_tokens = options.min_tokens
        self._include_stop = options.include_stop
        # The stop string that came: the text is cut before it, and everything later is ignored.
        self.match: str | None = None
        self.num_tokens = 0  # ids taken so far, up to and with the one that completed a stop string

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that may be shown now."""
        if self.match is not None:
            return ""
        table, matcher = self._table, self._matcher
        if matcher is None:
            self.num_tokens += len(token_ids)
            return self._decode(b"".join([table[token_id] for token_id in token_ids]))
        pieces: list[str] = []
        for token_id in token_ids:
            self.num_tokens += 1
            data = table[token_id]
            text = self._decode(data)
            if self.num_tokens > self._min_tokens:
                if data or self._all_bytes is None:
                    text = matcher.push(text) if text else ""
                else:
                    text = matcher.push(_text(self._all_bytes[token_id]), shown=False)
                if matcher.match is not None:
                    pieces.append(text + self._take_match(matcher.match))
                    break
            pieces.append(text)
        return "".join(pieces)

    def finish(self, stop_token: int | None = None) -> str:
        """The rest: text held for a stop string. A character of which bytes are missing is dropped.

        `stop_token` ended the stream and has no part in its text, but may complete a stop string;
        it is counted then.
        """
        matcher = self._matcher
        if self.match is not None or matcher is None:
            return ""
        text = ""
        if (
            stop_token is not None
            and self._all_bytes is not None
            and self.num_tokens >= self._min_tokens
        ):
            text = matcher.push(_text(self._all_bytes[stop_token]), shown=False)
            if matcher.match is not None:
                self.num_tokens += 1
                return text + self._take_match(matcher.match)
        return text + matcher.finish()

    @property
    def whole_texts(self) -> WholeTexts | None:
        """The texts of tokens as push() shows them where it holds nothing before and has no stop
        string to look for. None: special tokens count for the stop strings.
        """
        return None if self._all_bytes is not None else self._table.whole_texts

    @property
    def stop_begins(self) -> tuple[bytes, ...]:
        """The first characters of the stop strings, as they stand within a JSON string."""
        return () if self._matcher is None else self._matcher.stop.first_json

    @property
    def holds_nothing(self) -> bool:
        """Whether all text so far was given out, and that of the next token is shown as it is. A
        reader that looks it up in whole_texts adds to num_tokens and has no need of push().
        """
        matcher = self._matcher
        return not (
            self._strip_space
            or self.match is not None
            or self._utf8.getstate()[0]
            or (matcher is not None and matcher.begun)
        )

    def _decode(self, data: bytes) -> str:
        if self._strip_space and data:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def _take_match(self, match: str) -> str:
        """Ends the text with a stop string; what is shown of it."""
        self.match = match
        return match if self._include_stop else ""


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
