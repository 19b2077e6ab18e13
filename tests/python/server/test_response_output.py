"""What parts of an answer come to: items, and events that the SDK's types know."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.responses import Response

from minisgl.server.choice import Delta, TokenEntry
from minisgl.server.response_events import EventWriter, ResponseOutput
from minisgl.server.response_items import messages_of, stored_items
from minisgl.server.response_schemas import Item
from minisgl.server.response_store import NUM_OVERHEAD_BYTES, ResponseStore, StoredResponse, Turn
from minisgl.text.formats import Parsing
from minisgl.text.parsers.formats import ParserContext
from minisgl.text.parts import ArgumentsPart, CallPart, Part, ReasoningPart, TextPart
from tests.python.server.byte_tokenizer import make_tokenizer
from tests.python.server.test_responses import events

HEX = "0" * 32
PARTS: list[Part] = [
    ReasoningPart("I need "),
    ReasoningPart("the time."),
    TextPart("Let me"),
    TextPart(" see."),
    CallPart(0, "call_a", "clock"),
    ArgumentsPart(0, '{"zone":'),
    ArgumentsPart(0, ' "UTC"}'),
    CallPart(1, "call_b", "clock"),
    ArgumentsPart(1, "{}"),
    TextPart("Both are on their way."),
]


def made(
    deltas: list[Delta], *, complete: bool = True, has_logprobs: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The items, and the events."""
    writer = EventWriter()
    output = ResponseOutput(writer, HEX, make_tokenizer(), has_logprobs=has_logprobs)
    data = b"".join(output.add(delta) for delta in deltas)
    data += output.finish(complete=complete)
    return output.items, events(data.decode())


def delta(*parts: Part) -> Delta:
    return Delta(0, "raw", parts=list(parts))


@pytest.mark.parametrize("cut", ["each", "all", "two"])
def test_items_of_all_kinds(cut: str) -> None:
    size = {"each": 1, "all": len(PARTS), "two": 2}[cut]
    deltas = [delta(*PARTS[at : at + size]) for at in range(0, len(PARTS), size)]
    items, found = made(deltas)
    thought, words, first, second, rest = items
    assert thought["content"] == [{"type": "reasoning_text", "text": "I need the time."}]
    assert words["content"][0]["text"] == "Let me see."
    assert (first["call_id"], first["name"], first["arguments"]) == (
        "call_a",
        "clock",
        '{"zone": "UTC"}',
    )
    assert second["arguments"] == "{}"
    assert rest["content"][0]["text"] == "Both are on their way."
    assert {item["status"] for item in items} == {"completed"}
    assert len({item["id"] for item in items}) == 5
    # What the deltas say is what the items hold, and each item is whole before the next begins.
    said = [""] * 5
    open_items: list[int] = []
    for event in found:
        index = event["output_index"]
        if event["type"] == "response.output_item.added":
            assert open_items == []
            open_items.append(index)
        elif event["type"] == "response.output_item.done":
            open_items.remove(index)
            assert event["item"] == items[index]
        elif event["type"].endswith(".delta"):
            assert open_items == [index]
            said[index] += event["delta"]
    assert said == [
        "I need the time.",
        "Let me see.",
        '{"zone": "UTC"}',
        "{}",
        "Both are on their way.",
    ]


def test_the_sdk_reads_the_items() -> None:
    items, _ = made([delta(*PARTS)])
    response = Response.model_validate(
        {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": "m",
            "output": items,
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
    )
    assert [item.type for item in response.output] == [
        "reasoning",
        "message",
        "function_call",
        "function_call",
        "message",
    ]


def test_a_cut_call_is_incomplete() -> None:
    items, found = made([delta(*PARTS[:6])], complete=False)
    assert [item["status"] for item in items] == ["completed", "completed", "incomplete"]
    assert items[-1]["arguments"] == '{"zone":'
    assert found[-1]["type"] == "response.output_item.done"


def test_text_without_a_parser_is_content() -> None:
    items, _ = made([Delta(0, "He"), Delta(0, ""), Delta(0, "llo")])
    assert items[0]["content"][0]["text"] == "Hello"


CALL = '<tool_call>\n{"name": "f", "arguments": {"a": "Hi"}}\n</tool_call>'


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_log_probabilities_are_the_content_s(size: int) -> None:
    said = f"<think>Hi, then</think>\n\nHi, a < b \n{CALL}\nHi\n{CALL}"
    parsing = Parsing("hermes", "qwen3", ParserContext("", lambda: "call_a"), True)
    reader = parsing.reader(locates=True)
    deltas = []
    for begin in range(0, len(said), size):
        text = said[begin : begin + size]
        lengths = [1] * len(text)
        parts = reader.read(text, lengths, final=begin + size >= len(said))
        entries = [TokenEntry(ord(one), -0.5, [], begin + at) for at, one in enumerate(text)]
        deltas.append(Delta(0, text, entries, parts=parts, part_ends=reader.part_ends))
    items, found = made(deltas, has_logprobs=True)
    contents = [item["content"][0] for item in items if item["type"] == "message"]
    assert [content["text"] for content in contents] == ["Hi, a < b", "Hi"]
    for content in contents:
        assert "".join(one["token"] for one in content["logprobs"]) == content["text"]
    streamed = [one["logprobs"] for one in found if one["type"] == "response.output_text.delta"]
    assert sum(streamed, []) == [one for content in contents for one in content["logprobs"]]


def sent_back(items: list[dict[str, Any]]) -> list[Item]:
    return msgspec.convert(items, list[Item])


def test_an_answer_that_comes_back_is_one_message() -> None:
    items, _ = made([delta(*PARTS)])
    items.append({"type": "function_call_output", "call_id": "call_a", "output": "noon"})
    answer, result = messages_of(None, sent_back(items), 0)
    assert (answer.role, answer.reasoning_content) == ("assistant", "I need the time.")
    assert answer.content == "Let me see.Both are on their way."
    assert [call.id for call in answer.tool_calls or ()] == ["call_a", "call_b"]
    assert (result.role, result.tool_call_id, result.content) == ("tool", "call_a", "noon")


def test_messages_that_follow_each_other_stay_apart() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "t"}]}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    said = {"role": "assistant", "content": "a"}
    messages = messages_of("Be kind.", sent_back([said, said, thought, call, thought, said]), 0)
    assert [message.content for message in messages] == ["Be kind.", "a", "a", None, "a"]
    assert [message.reasoning_content for message in messages] == [None, None, None, "t", "t"]


def test_parts_and_custom_calls() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    items = [
        {"role": "developer", "content": parts},
        {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": parts},
    ]
    told, called, result = messages_of(None, sent_back(items), 0)
    assert (told.role, told.content) == ("developer", "a\nb")
    assert called.tool_calls
    assert called.tool_calls[0].custom
    assert result.content == "a\nb"


def test_what_is_stored_has_ids_and_parts() -> None:
    items = sent_back(
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "id": "mine"}]
    )
    first, second = stored_items(items, HEX)
    assert (first.id, second.id) == (f"msg_{HEX}_i0", "mine")
    assert [message.content for message in messages_of(None, [first, second], 0)] == ["a", "b"]


def turn(parent: Turn | None, size: int) -> Turn:
    return Turn(parent, b"x" * size)


def test_the_store_is_bounded_and_counts_shared_turns_once() -> None:
    store = ResponseStore(100_000)
    last: Turn | None = None
    for number in range(1000):
        if number % 7 == 0:
            last = None
        last = turn(last, number * 37 % 5000)
        store.add(None, str(number), StoredResponse(b"y" * 500, last, 1))
        if number % 5 == 0 and number > 10:
            with_removed = store.num_bytes
            store.remove(None, str(number))
            assert store.num_bytes < with_removed
        assert store.num_bytes <= 100_000
        assert store.num_bytes == counted(store)
    assert 5 < len(store) < 60


def counted(store: ResponseStore) -> int:
    """The memory of a store, each turn once, in the slow and obvious way."""
    turns = {
        id(one): one for kept in store._responses._values.values() for one in kept.turn.chain()
    }
    return sum(kept.num_bytes for kept in store._responses._values.values()) + sum(
        one.num_bytes for one in turns.values()
    )


def test_what_was_used_stays() -> None:
    room = 3 * (2 * NUM_OVERHEAD_BYTES + 20)
    store = ResponseStore(room)
    for name in ("a", "b", "c"):
        store.add(None, name, StoredResponse(b"y" * 10, turn(None, 10), 1))
    store.find(None, "a")
    store.add(None, "d", StoredResponse(b"y" * 10, turn(None, 10), 1))
    assert {key for _, key in store._responses._values} == {"a", "c", "d"}


def test_what_is_too_large_makes_nothing_go() -> None:
    store = ResponseStore(10_000)
    store.add(None, "a", StoredResponse(b"", turn(None, 10), 1))
    store.add(None, "b", StoredResponse(b"", turn(None, 10_000), 1))
    assert {key for _, key in store._responses._values} == {"a"}
