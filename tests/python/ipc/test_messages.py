"""The wire: what is encoded comes back, and what is malformed is refused, whatever it is."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minisgl.ipc.messages import (
    Abort,
    BlockEvent,
    EngineInfo,
    EngineOptions,
    EngineStats,
    Failed,
    Output,
    PhaseReport,
    Place,
    Ready,
    Shutdown,
    Start,
    StepOutputs,
    Submit,
    from_rank_decoder,
    to_rank_decoder,
)
from minisgl.sampling_params import SamplingParams
from minisgl.text import messages as text_messages

encode = msgspec.msgpack.encode
ids = st.integers(0, 2**63 - 1)
tokens = st.integers(0, 2**31 - 1)
floats = st.floats(allow_nan=False)
counts = st.integers(0, 2**62)
alternatives = st.lists(st.tuples(tokens, floats), max_size=3)

outputs = st.builds(
    Output,
    ids,
    st.lists(tokens, max_size=5),
    st.sampled_from(["", "stop", "length", "abort", "error"]),
    st.sampled_from(["", "too_long", "engine_failure"]),
    st.text(max_size=20),
    st.none() | st.lists(st.tuples(floats, alternatives), max_size=3),
    st.none() | st.lists(st.tuples(tokens, st.none() | floats, alternatives), max_size=3),
    st.none() | st.tuples(floats, floats, floats),
)
to_rank = st.one_of(
    st.builds(
        Submit,
        id=ids,
        prompt=st.lists(tokens, max_size=20),
        params=st.builds(
            SamplingParams,
            max_tokens=st.integers(0, 2**31 - 1),
            seed=st.integers(0, 2**64 - 1),
            temperature=st.floats(0, 100),
            top_p=st.floats(0, 1, exclude_min=True),
            presence_penalty=st.floats(-2, 2),
            logit_bias=st.dictionaries(tokens, st.floats(-100, 100), max_size=5),
            stop=st.lists(st.text(min_size=1, max_size=9), max_size=3),
            ignore_eos=st.booleans(),
        ),
    ),
    st.builds(Abort, st.lists(ids, max_size=10)),
    st.just(Shutdown()),
    st.builds(
        Start,
        st.builds(EngineOptions, model_path=st.text(max_size=20)),
        st.builds(
            Place, rank=counts, name=st.text(max_size=20), cores=st.lists(st.integers(0, 99))
        ),
    ),
)
hashes = st.integers(0, 2**64 - 1)
block_events = st.one_of(
    st.builds(BlockEvent, st.just("removed"), st.just("GPU"), st.lists(hashes, max_size=3)),
    st.builds(
        BlockEvent,
        st.just("stored"),
        st.just("CPU"),
        st.lists(hashes, min_size=2, max_size=2),
        st.none() | hashes,
        st.lists(tokens, min_size=8, max_size=8),
        st.binary(max_size=16),
    ),
    st.just(BlockEvent("cleared")),
)
from_rank = st.one_of(
    st.builds(
        StepOutputs,
        st.lists(outputs, max_size=4),
        st.builds(EngineStats, num_running=counts, pages_free=counts),
        st.lists(block_events, max_size=3),
    ),
    st.builds(PhaseReport, phase=st.text(max_size=20), done=counts, total=counts),
    st.builds(
        Ready,
        st.builds(EngineInfo, vocab_size=st.integers(1, 1000), max_model_len=st.integers(1, 1000)),
    ),
    st.builds(Failed, st.text(max_size=50)),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@given(to_rank)
def test_messages_to_the_rank_come_back(message: Any) -> None:
    assert to_rank_decoder.decode(encode(message)) == message


@given(from_rank)
def test_messages_from_the_rank_come_back(message: Any) -> None:
    assert from_rank_decoder.decode(encode(message)) == message


@pytest.mark.parametrize(
    "decode",
    [
        to_rank_decoder.decode,
        from_rank_decoder.decode,
        text_messages.to_text_decoder.decode,
        text_messages.from_text_decoder.decode,
    ],
)
@given(data=st.binary(max_size=200) | json_values.map(msgspec.msgpack.encode))
def test_whatever_arrives_is_a_message_or_refused(decode: Any, data: bytes) -> None:
    try:
        message = decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    assert isinstance(message, msgspec.Struct)


@given(from_rank, st.data())
def test_a_damaged_message_is_a_message_or_refused(message: Any, data: st.DataObject) -> None:
    wire = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = from_rank_decoder.decode(bytes(wire))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return
    assert isinstance(decoded, msgspec.Struct)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises((msgspec.DecodeError, RecursionError)):
        text_messages.to_text_decoder.decode(
            msgspec.msgpack.encode({"type": "chat", "id": 1}).replace(b"\x82", b"\x83", 1)
            + msgspec.msgpack.encode("messages")
            + b"\x91" * 100_000
        )


@pytest.mark.parametrize(
    "change",
    [
        {"id": -1},
        {"id": 2**63},
        {"prompt": [-1]},
        {"prompt": [2**31]},
        {"prompt": ["a"]},
        {"params": None},
        {"params": {"max_tokens": -1}},
        {"params": {"seed": -1}},
        {"params": {"temperature": math.nan}},
        {"params": {"temperature": math.inf}},
        {"params": {"temperature": 100.5}},
        {"params": {"temperature": -0.5}},
        {"params": {"temperature": "0.5"}},
        {"params": {"top_k": True}},
        {"params": {"top_p": 1.5}},
        {"params": {"max_tokens": 1, "min_tokens": 2}},
        {"params": {"logit_bias": {1: math.nan}}},
        {"params": {"stop_token_ids": [0] * 5000}},
        {"params": {"stop": [""]}},
        {"params": {"tempreature": 1.0}},
        {"end_token_ids": [-1]},
        {"bad_words": [[]]},
        {"bad_words": [[1, -1]]},
        {"bad_words": [[1]] * 1000},
        {"num_resumed": -1},
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, Any]) -> None:
    good = {"type": "submit", "id": 1, "prompt": [1], "params": {"max_tokens": 1, "seed": 0}}
    assert isinstance(to_rank_decoder.decode(encode(good)), Submit)
    with pytest.raises(msgspec.ValidationError):
        to_rank_decoder.decode(encode({**good, **change}))


@pytest.mark.parametrize(
    "change", [{"page_size": 12}, {"max_running": 0}, {"device": "tpu"}, {"num_threads": "1"}]
)
def test_engine_options_out_of_range_are_refused(change: dict[str, Any]) -> None:
    options = {"model_path": "m"}
    good = {"type": "start", "options": options, "place": {}}
    assert isinstance(to_rank_decoder.decode(encode(good)), Start)
    with pytest.raises(msgspec.ValidationError):
        to_rank_decoder.decode(encode({**good, "options": {**options, **change}}))


def test_the_native_engines_tuples_have_the_layout_of_outputs() -> None:
    drained: Any = [
        (1, [5, 6], "", "", "", [(-0.5, [(5, -0.5)]), (-1.0, [])], None, None),
        (2, [], "error", "too_long", "no", None, [(3, None, [])], (0.0, 1.0, 2.0)),
    ]
    stats: Any = {"num_running": 2, "num_steps": 9}
    assert from_rank_decoder.decode(encode(StepOutputs(drained, stats))) == StepOutputs(
        [Output(*drained[0]), Output(*drained[1])], EngineStats(num_running=2, num_steps=9)
    )


@given(st.lists(outputs, min_size=1, max_size=5))
def test_merged_outputs_hold_all_tokens_and_the_last_word(parts: list[Output]) -> None:
    expected = [token for part in parts for token in part.token_ids]
    last = next((part for part in reversed(parts) if part.finish), None)
    merged = decode_merged(parts)
    assert merged.token_ids == expected
    if last is not None:
        assert (merged.finish, merged.error_code, merged.error) == (
            last.finish,
            last.error_code,
            last.error,
        )


def decode_merged(parts: list[Output]) -> Output:
    decoder = msgspec.msgpack.Decoder(Output)
    merged = decoder.decode(encode(parts[0]))
    for part in parts[1:]:
        merged.merge(part)
    return merged
