"""The text of a choice about whose tokens nothing else was asked for, by a short way: most tokens
are whole characters, and their text as JSON is made once per token of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisgl.server.choice import Delta
from minisgl.text.detokenizer import LocalDetokenizer
from minisgl.tokenizer.whole_texts import PassingTexts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from minisgl.server.choice import Choice
    from minisgl.server.metrics import Metrics
    from minisgl.server.stream_shape import TextEvents
    from minisgl.tokenizer import IncrementalDetokenizer
    from minisgl.tokenizer.whole_texts import WholeTexts


class PlainText:
    """Looks up those outputs of a choice that add whole characters to text of which nothing is
    held, and of which the parser, where there is one, knows what they are. What it has to read it
    is given, where no stop string may come. The others are left to Choice.read().
    """

    def __init__(
        self,
        choice: Choice,
        detokenizer: IncrementalDetokenizer,
        whole: WholeTexts,
        events: TextEvents,
        metrics: Metrics,
    ) -> None:
        self._choice = choice
        self._stream = choice.stream
        self._reader = choice.reader
        self._parts = choice.parts
        self._detokenizer = detokenizer
        self._whole = whole
        self._events = events
        self._stop_begins = detokenizer.stop_begins  # as JSON
        self._may_read = choice.only_parses
        self._metrics = metrics
        # Of the tokens that come next, as far as is known, and what stands around each text.
        self._texts: WholeTexts | PassingTexts | None = None
        self._around: tuple[bytes, ...] = ()
        self._num_told = 0  # tokens that the parser has been told of, while it isn't read

    @classmethod
    def of(cls, choice: Choice, events: TextEvents, metrics: Metrics) -> PlainText | None:
        """That of a choice which has got its first token; None where the client asked for more than
        text, another process makes it, or special tokens may end it.
        """
        detokenizer = choice.detokenizer
        if (
            not choice.is_plain
            or not choice.first_token_at
            or not isinstance(detokenizer, LocalDetokenizer)
            or (whole := detokenizer.incremental.whole_texts) is None
            or events.around_text(choice.index, None) is None
        ):
            return None
        return cls(choice, detokenizer.incremental, whole, events, metrics)

    def take(self, now: float) -> bytes | None:
        """The events of what the choice's next output adds to its text, b"" where that is nothing.
        None, and it wasn't taken, where that takes more than looking it up or parsing it.
        """
        output = self._stream.next_output
        ids = output.token_ids
        if output.finish or not ids:
            self.leave()
            return None
        texts = self._texts
        if texts is None and (texts := self._begin()) is None:
            return self._read(ids, now) if self._may_read else None
        count = len(ids)
        text: bytes | None
        if count == 1:
            found = texts[ids[0]]
            if isinstance(found, tuple):
                text, texts = found
            else:
                text = found
        else:
            text, texts = _look_up(ids, texts)
        if text is None or (self._stop_begins and self._may_stop(ids)):
            self.leave()
            return self._read(ids, now) if self._may_read else None
        self._texts = texts
        self._detokenizer.num_tokens += count
        self._take(count, now)
        return text.join(self._around) if text else b""

    def _read(self, ids: Sequence[int], now: float) -> bytes:
        """Likewise, of text that the parser has to see."""
        self._take(len(ids), now)
        parts = self._choice.parse(self._detokenizer.push(ids), ids)
        return self._events.event(Delta(self._choice.index, "", parts=parts)) if parts else b""

    def _take(self, count: int, now: float) -> None:
        self._stream.take()
        self._reader.num_tokens += count
        choice, metrics = self._choice, self._metrics
        metrics.inter_token_latency.observe((now - choice.last_token_at) / count, count)
        metrics.generation_tokens += count
        choice.last_token_at = now

    def _may_stop(self, ids: Sequence[int]) -> bool:
        """Whether a stop string may begin in these tokens."""
        texts = [self._whole[token_id] or b"" for token_id in ids]
        return any(begin in text for begin in self._stop_begins for text in texts)

    def leave(self) -> None:
        """What comes next may be read by others, up to the next take()."""
        texts, self._texts = self._texts, None
        if isinstance(texts, PassingTexts) and self._parts is not None:
            passed = self._stream.received[self._num_told : self._reader.num_tokens]
            if passed:
                self._parts.pass_on(self._whole.lengths_of(passed), texts.reading)

    def _begin(self) -> WholeTexts | PassingTexts | None:
        """Sees where the answer is; None where what comes next has to be read."""
        if not self._detokenizer.holds_nothing:
            return None
        if self._parts is None:
            around = self._events.around_text(self._choice.index, None)
            self._texts = self._whole
        elif (passage := self._parts.passage) is None:
            return None
        else:
            around = self._events.around_text(self._choice.index, passage.like)
            self._texts = self._whole.passing(passage.reading)
            self._num_told = self._reader.num_tokens
        assert around is not None
        self._around = around
        return self._texts


def _look_up(
    ids: Sequence[int], texts: WholeTexts | PassingTexts
) -> tuple[bytes | None, WholeTexts | PassingTexts]:
    """The text of several tokens, None where one lacks it, and those of the tokens that follow."""
    shown = []
    for token_id in ids:
        found = texts[token_id]
        if isinstance(found, tuple):
            found, texts = found
        if found is None:
            return None, texts
        shown.append(found)
    return b"".join(shown), texts
