"""The text of a choice about which nothing else was asked for, by a short way: most tokens are
whole characters, and their text as JSON is made once per token of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minisgl.text.detokenizer import LocalDetokenizer

if TYPE_CHECKING:
    from minisgl.server.choice import Choice
    from minisgl.server.metrics import Metrics
    from minisgl.tokenizer import IncrementalDetokenizer
    from minisgl.tokenizer.whole_texts import WholeTexts


class PlainText:
    """Reads those outputs of a choice that add whole characters to text of which nothing is held.
    The others are left to Choice.read().
    """

    def __init__(
        self,
        choice: Choice,
        detokenizer: IncrementalDetokenizer,
        texts: WholeTexts,
        metrics: Metrics,
    ) -> None:
        self.index = choice.index
        self._choice = choice
        self._stream = choice.stream
        self._reader = choice.reader
        self._detokenizer = detokenizer
        self._texts = texts
        self._stop_begins = detokenizer.stop_begins  # as JSON
        self._metrics = metrics
        self._nothing_held = False  # as far as is known

    @classmethod
    def of(cls, choice: Choice, metrics: Metrics) -> PlainText | None:
        """That of a choice which has got its first token; None where the client asked for more than
        text, another process makes it, or special tokens may end it.
        """
        detokenizer = choice.detokenizer
        if (
            not choice.is_plain
            or not choice.first_token_at
            or not isinstance(detokenizer, LocalDetokenizer)
            or (texts := detokenizer.incremental.whole_texts) is None
        ):
            return None
        return cls(choice, detokenizer.incremental, texts, metrics)

    def take(self, now: float) -> bytes | None:
        """What the choice's next output adds to its text, as JSON without quotes. None, and it
        wasn't taken, where that takes more than looking it up.
        """
        output = self._stream.next_output
        ids = output.token_ids
        if not self._nothing_held:
            self._nothing_held = self._detokenizer.holds_nothing
        if output.finish or not ids or not self._nothing_held:
            return None
        texts = self._texts
        if len(ids) == 1:
            text = texts[ids[0]]
        else:
            found = [texts[token_id] for token_id in ids]
            text = None if None in found else b"".join(found)  # type: ignore[arg-type]
        if text is None or (
            self._stop_begins and any(begin in text for begin in self._stop_begins)
        ):
            self._nothing_held = False
            return None
        self._stream.take()
        count = len(ids)
        self._detokenizer.num_tokens += count
        self._reader.num_tokens += count
        choice, metrics = self._choice, self._metrics
        metrics.inter_token_latency.observe((now - choice.last_token_at) / count, count)
        metrics.generation_tokens += count
        choice.last_token_at = now
        return text
