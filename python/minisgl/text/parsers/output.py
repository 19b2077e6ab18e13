"""Output: the parts of an answer as a reader finds them, and what becomes of white space.

White space that touches a marker belongs to the format, as templates put it there: what stands
before a marker is dropped, and so is what stands behind one up to the last line break (the first
line's indent stays). Text between two markers, or behind the last, that is white space alone is
none. Everything else stays as the model wrote it; so text before any marker only loses its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minisgl.text.parsers.source import Flow, MarkerReading
from minisgl.text.parts import (
    ArgumentsPart,
    CallPart,
    Part,
    Passage,
    ReasoningPart,
    TextPart,
    Thought,
)

if TYPE_CHECKING:
    from minisgl.tokenizer.whole_texts import Reading


class Output:
    """Collects parts; neighbours that belong together become one."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        self.thoughts: list[Thought] = []
        self.thinking = False  # whether text is a thought's
        self.num_calls = 0
        self._new_id = new_id
        self._parts: list[Part] = []
        self._pieces: list[str] = []  # of the part that is being put together
        self._kind: type[TextPart] | type[ReasoningPart] | type[ArgumentsPart] = TextPart
        self._space: list[str] = []  # may stand before a marker
        self._fresh = False  # a marker was the last thing but white space
        self._text_begun = False  # since the start or the last marker
        self._arguments_begun = False

    @property
    def kind(self) -> type[TextPart] | type[ReasoningPart]:
        """What text is now."""
        return ReasoningPart if self.thinking else TextPart

    def passage(self, into: Flow, reading: Reading) -> Passage | None:
        """What becomes of text that flows; None where it can't be passed on as it is."""
        if into is Flow.ARGUMENTS:
            like = ArgumentsPart(self.num_calls - 1, "")
            return Passage(like, reading) if self._arguments_begun else None
        if self._text_begun and isinstance(reading, MarkerReading):
            holding = reading.holding("".join(self._space))
            return None if holding is None else Passage(self.kind(""), holding)
        return None

    def pass_on(self, reading: Reading) -> None:
        """Text has flowed, up to there."""
        if isinstance(reading, MarkerReading) and reading.held is not None:
            self._space[:] = filter(None, [reading.held])

    @property
    def at_line_start(self) -> bool:
        """Whether nothing but white space stands before, on the line."""
        return not self._text_begun or any("\n" in space for space in self._space)

    def text(self, text: str) -> None:
        """Text of the answer, or of a thought."""
        kept = text.rstrip()
        if kept:
            whole = "".join((*self._space, kept))
            self._space.clear()
            if self._fresh:
                self._fresh = False
                indent = len(whole) - len(whole.lstrip())
                whole = whole[whole.rfind("\n", 0, indent) + 1 :]
            self._text_begun = True
            self._add(self.kind, whole)
        if len(kept) < len(text):
            self._space.append(text[len(kept) :])

    def marker(self) -> None:
        """A marker of the format stands here."""
        self._space.clear()
        self._fresh = True
        self._text_begun = False

    def begin_thought(self, at: int) -> None:
        """A thought begins: its mark, which has been read, stands there (as Thought says)."""
        self.marker()
        self.thinking = True
        self.thoughts.append(Thought(at))

    def end_thought(self, at: int) -> None:
        """The thought, where there is one, has ended there, behind its mark."""
        if self.thinking:
            self.thinking = False
            self.thoughts[-1].end = at

    def call(self, name: str) -> None:
        """A call begins."""
        self.marker()
        self._flush()
        self._parts.append(CallPart(self.num_calls, self._new_id(), name))
        self.num_calls += 1
        self._arguments_begun = False

    def arguments(self, text: str) -> None:
        """A piece of the arguments of the call that was begun last."""
        self._arguments_begun = True
        self._add(ArgumentsPart, text)

    def end_call(self) -> None:
        """The call ends. Without arguments it has the empty object."""
        if not self._arguments_begun:
            self.arguments("{}")

    def finish(self) -> None:
        """The answer ends."""
        if self._space and not self._fresh:
            self._add(self.kind, "".join(self._space))
        self._space.clear()

    def drain(self) -> list[Part]:
        """The parts since the last drain."""
        self._flush()
        parts, self._parts = self._parts, []
        return parts

    def _add(
        self, kind: type[TextPart] | type[ReasoningPart] | type[ArgumentsPart], text: str
    ) -> None:
        if kind is not self._kind:
            self._flush()
            self._kind = kind
        self._pieces.append(text)

    def _flush(self) -> None:
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces.clear()
        if self._kind is ArgumentsPart:
            self._parts.append(ArgumentsPart(self.num_calls - 1, text))
        else:
            kind = ReasoningPart if self._kind is ReasoningPart else TextPart
            self._parts.append(kind(text))
