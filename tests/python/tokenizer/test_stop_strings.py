"""StopMatcher against a slow reference."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minisgl.tokenizer.stop_strings import StopMatcher

LETTERS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=4)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that completes first, of those the longest; and which."""
    for end in range(len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            longest = max(completed, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(STOPS, st.lists(LETTERS, max_size=8))
def test_cuts_at_the_first_stop_however_the_text_comes(stops: list[str], pieces: list[str]) -> None:
    expected, expected_match = reference("".join(pieces), stops)
    matcher = StopMatcher(stops)
    emitted = ""
    for piece in pieces:
        emitted += matcher.push(piece)
        assert expected.startswith(emitted)  # nothing of a stop string came out on the way
        if matcher.match is not None:
            break
    else:
        emitted += matcher.finish()
    assert (emitted, matcher.match) == (expected, expected_match)


@given(STOPS, LETTERS)
def test_holds_no_more_than_it_must(stops: list[str], text: str) -> None:
    matcher = StopMatcher(stops)
    emitted = matcher.push(text)
    if matcher.match is None:
        held = text[len(emitted) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_one_stop_inside_another() -> None:
    matcher = StopMatcher(["abcd", "bc"])
    assert matcher.push("xab") == "x"
    assert matcher.push("c") == "a"
    assert matcher.match == "bc"
