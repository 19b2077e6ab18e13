"""StopMatcher against a slow reference."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from minisgl.tokenizer.stop_strings import StopMatcher, StopStrings

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
    matcher = StopMatcher(StopStrings(stops))
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
    matcher = StopMatcher(StopStrings(stops))
    emitted = matcher.push(text)
    if matcher.match is None:
        held = text[len(emitted) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_one_stop_inside_another() -> None:
    matcher = StopMatcher(StopStrings(["abcd", "bc"]))
    assert matcher.push("xab") == "x"
    assert matcher.push("c") == "a"
    assert matcher.match == "bc"


# A piece: its text, and whether it is shown. "<h>" is the text of a hidden token.
PIECES = st.lists(
    st.one_of(
        st.tuples(st.text(alphabet="ab<h>", max_size=6), st.just(True)),
        st.just(("<h>", False)),
    ),
    max_size=12,
)
WITH_HIDDEN = st.lists(
    st.lists(st.sampled_from(["<h>", "a", "b", "ab", "<", "h>"]), min_size=1, max_size=4).map(
        "".join
    ),
    min_size=1,
    max_size=4,
)


def reference_with_hidden(
    pieces: list[tuple[str, bool]], stops: list[str], hidden: list[str]
) -> tuple[str, str | None]:
    """The shown text before the stop string that completes first: one with a hidden token's text in
    it in all of the text, another in what is shown of it.
    """
    sees = {stop: any(text in stop for text in hidden) for stop in stops}
    characters = [(character, shown) for text, shown in pieces for character in text]
    for end in range(1, len(characters) + 1):
        completed = []
        for stop in stops:
            seen = [index for index in range(end) if sees[stop] or characters[index][1]]
            text = "".join(characters[index][0] for index in seen)
            if text.endswith(stop) and seen and seen[-1] == end - 1:
                completed.append((len(stop), stop, seen[-len(stop)]))
        if completed:
            _, stop, start = max(completed)
            return "".join(c for c, shown in characters[:start] if shown), stop
    return "".join(c for c, shown in characters if shown), None


@settings(max_examples=300)
@given(PIECES, WITH_HIDDEN)
def test_hidden_tokens_stop_and_are_never_shown(
    pieces: list[tuple[str, bool]], stops: list[str]
) -> None:
    expected, expected_match = reference_with_hidden(pieces, stops, ["<h>"])
    matcher = StopMatcher(StopStrings(stops, ["<h>"]))
    emitted = ""
    for text, shown in pieces:
        emitted += matcher.push(text, shown)
        assert expected.startswith(emitted)
        if matcher.match is not None:
            break
    else:
        emitted += matcher.finish()
    assert (emitted, matcher.match) == (expected, expected_match)


def test_a_stop_string_with_a_hidden_token_in_its_middle() -> None:
    matcher = StopMatcher(StopStrings(["\n<h>user"], ["<h>"]))
    assert matcher.push("Yes.\n") == "Yes."
    assert matcher.push("<h>", shown=False) == ""
    assert matcher.push("us") == ""
    assert matcher.push("ual") == "\nusual"
    assert matcher.push("\n<h>user") == ""  # spelled out, letter by letter
    assert matcher.match == "\n<h>user"
