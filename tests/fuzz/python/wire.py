"""The msgpack decoders of all queues, and what happens to a message behind them.

Half of the inputs are bytes that libFuzzer changed, half are valid msgpack in which one value was
replaced: the decoders are C, which gives the fuzzer no coverage to go by.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import atheris

with atheris.instrument_imports(include=["minisgl"]):
    import msgspec

    from minisgl.engine.stream import TokenStream
    from minisgl.ipc import messages
    from minisgl.ipc.queues import MALFORMED
    from minisgl.rank import main as rank
    from minisgl.sampling_params import SamplingParams
    from minisgl.text import messages as text_messages
    from minisgl.text import template_messages, worker_process

DECODERS = (
    messages.to_rank_decoder.decode,
    messages.from_rank_decoder.decode,
    text_messages.to_text_decoder.decode,
    text_messages.from_text_decoder.decode,
    template_messages.decode_to_template,
    template_messages.decode_from_template,
)
encode = msgspec.msgpack.Encoder().encode
VALUES = [None, True, -1, 0, 1, 2**31, 2**63, 2**64 - 1, 0.5, float("nan"), float("inf")]
VALUES += ["", "submit", "step", b"", [], {}, [1], [[0, []]], {"type": "chat"}, "\ud7ff" * 3]


class Outbox:
    """Takes what is answered to a malformed message; it must be a message itself."""

    def put_nowait(self, message: Any) -> bool:
        encode(message)
        return True


def check(data: bytes) -> None:
    for decode in DECODERS:
        try:
            message = decode(data)
        except MALFORMED:
            continue
        if isinstance(message, template_messages.Render):
            continue  # holds NaN where it likes
        assert encode(decode(encode(message))) == encode(message)
        if isinstance(message, messages.StepOutputs):
            deliver(message)
    for answer in (rank.answer_malformed, worker_process.refuse_malformed):
        answer(Outbox())(data)  # type: ignore[arg-type]


def deliver(step: messages.StepOutputs) -> None:
    """All outputs to one stream, as if they had one id."""
    request = messages.Submit(id=0, prompt=[1], params=SamplingParams(max_tokens=1, seed=0))
    stream = TokenStream(request, lambda request_id: None)
    expected: list[int] = []
    for output in step.outputs:
        if not stream.finished:
            expected += output.token_ids
        stream.deliver(output)
    assert stream.received == expected


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    choose = random.Random(seed)
    if choose.random() < 0.5:
        try:
            changed = msgspec.msgpack.encode(replace_one(msgspec.msgpack.decode(data), choose))
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError):
            pass
        else:
            if len(changed) <= max_size:
                return changed
    mutated: bytes = atheris.Mutate(data, max_size)
    return mutated


def replace_one(value: Any, choose: random.Random) -> Any:
    """The value with one part replaced, removed, doubled or put somewhere else."""
    if isinstance(value, dict) and value and choose.random() < 0.9:
        key = choose.choice(list(value))
        if choose.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: replace_one(value[key], choose)}
    if isinstance(value, list) and value and choose.random() < 0.9:
        index = choose.randrange(len(value))
        if choose.random() < 0.2:
            return value[:index] + value[index:] * choose.choice([0, 2, 3])
        return [*value[:index], replace_one(value[index], choose), *value[index + 1 :]]
    if isinstance(value, int) and not isinstance(value, bool) and choose.random() < 0.5:
        return choose.choice([-value, value + 1, value - 1, value * 2**8, value << 32])
    return choose.choice(VALUES)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check, custom_mutator=mutate)
    atheris.Fuzz()
