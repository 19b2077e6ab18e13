"""The number of a body's JSON values, counted without decoding it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.server import json_values
from minisgl.server.errors import ApiError
from minisgl.server.json_values import MAX_CONTAINERS, MAX_VALUES, check_values
from tests.python.server.conftest import Server


def refusal(body: bytes) -> str:
    with pytest.raises(ApiError) as refused:
        check_values(body)
    assert refused.value.status == 413
    return refused.value.message


def in_value(value: Any) -> tuple[int, int]:
    """Brackets and commas that a value is written with."""
    if not isinstance(value, (list, dict)):
        return 0, 0
    parts = list(value.values()) if isinstance(value, dict) else value
    counts = [in_value(part) for part in parts]
    return (
        1 + sum(brackets for brackets, _ in counts),
        max(0, len(parts) - 1) + sum(commas for _, commas in counts),
    )


def before_a_stray_backslash(text: bytes) -> tuple[int, int]:
    """Brackets and commas outside strings, read byte by byte up to where it can't be JSON."""
    brackets = commas = 0
    in_string = escaped = False
    for byte in text:
        if in_string:
            if escaped:
                escaped = False
            elif byte == ord("\\"):
                escaped = True
            elif byte == ord('"'):
                in_string = False
        elif byte == ord("\\"):
            break
        elif byte == ord('"'):
            in_string = True
        else:
            brackets += byte in b"[{"
            commas += byte == ord(",")
    return brackets, commas


tricky_text = st.text(st.sampled_from('"\\[]{},:a/\u00e9'), max_size=12)
json_value = st.recursive(
    st.none() | st.integers(-9, 9) | tricky_text,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(tricky_text, inner, max_size=5),
    max_leaves=40,
)


@given(json_value, st.booleans(), st.integers(1, 40))
def test_json_is_counted_as_it_is_read(value: Any, ascii_only: bool, chunk: int) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_values, "_CHUNK", chunk)
        assert json_values._count_outside_strings(text) == in_value(value)
    assert before_a_stray_backslash(text) == in_value(value)


@given(st.lists(st.sampled_from([b'"', b"\\", b"[", b"{", b",", b":", b"a"])).map(b"".join))
def test_what_is_no_json_is_counted_up_to_there(text: bytes) -> None:
    brackets, commas = json_values._count_outside_strings(text)
    least_brackets, least_commas = before_a_stray_backslash(text)
    assert brackets >= least_brackets
    assert commas >= least_commas


@pytest.mark.parametrize("text", ["[" * (MAX_CONTAINERS + 1), "{,[" * MAX_VALUES, '\\"[,' * 10**6])
def test_a_string_is_one_value_whatever_it_says(text: str) -> None:
    check_values(json.dumps({"prompt": [text, "a", text]}).encode())


def test_too_much_is_refused_with_the_number_and_the_limit() -> None:
    nested = b'{"a":[' + b"[]," * MAX_CONTAINERS + b"[]]}"
    assert refusal(nested).endswith(f"; limit {MAX_CONTAINERS}).")
    assert "too many lists and objects (at least 131" in refusal(nested)
    flat = b"[" + b"1," * MAX_VALUES + b"1]"
    assert re.search(rf"too many JSON values \(at least \d+; limit {MAX_VALUES}\)", refusal(flat))
    strings = b"[" + b'"[",' * MAX_VALUES + b"1]"
    assert "too many JSON values" in refusal(strings)


def test_as_much_as_the_limit_is_decoded() -> None:
    check_values(b"[" + b"[]," * (MAX_CONTAINERS - 2) + b"[]]")
    check_values(b"[" + b"1," * (MAX_VALUES - 1) + b"1]")


async def test_a_prompt_of_many_brackets_is_served_or_too_long(server: Server) -> None:
    answer = await server.complete("[" * (MAX_CONTAINERS + 1))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"
