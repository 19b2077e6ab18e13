"""What makes a stream's events, as those see it that send them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from minisgl.server.choice import Delta
    from minisgl.text.parts import Part


class Events(Protocol):
    """Makes the events of one kind of stream."""

    def event(self, delta: Delta) -> bytes:
        """The events that a delta makes, or b"" where it has nothing to show."""
        ...

    def last(self) -> bytes:
        """What follows the last delta's events: usage where it was asked for, and [DONE]."""
        ...


@runtime_checkable
class TextEvents(Events, Protocol):
    """Events of which most differ by a text alone."""

    def around_text(self, index: int, like: Part | None) -> tuple[bytes, ...] | None:
        """What an event of choice `index` that is neither its first nor its last has around the
        text, as JSON without its quotes, which stands between each two of these: there is no event
        where they are none. `like` is a part that has the text, without it; None: nothing is
        parsed. None where other things change, too, whatever is parsed.
        """
        ...
