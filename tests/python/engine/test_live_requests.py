"""Who is let in: bounds of requests and of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from minisgl.engine.api import EngineBusy
from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import (
    NO_STANDING,
    Abort,
    EngineInfo,
    EngineStats,
    Output,
    StepOutputs,
    Submit,
)
from minisgl.sampling_params import SamplingParams

INFO = EngineInfo(vocab_size=100, max_model_len=1000, max_running=4)


class Requests:
    """Live requests of an engine that takes everything and says what it is told to."""

    def __init__(self, max_waiting: int, max_waiting_tokens: int | None) -> None:
        self.live = LiveRequests(max_waiting, max_waiting_tokens)
        self.live.attach(self.sent)

    def sent(self, message: Submit | Abort) -> bool:
        return True

    def submit(self, prompt_tokens: int) -> TokenStream:
        engine = SimpleNamespace(state="ready", info=INFO)
        params = SamplingParams(max_tokens=10)
        prompt = [1] * prompt_tokens
        return self.live.submit(engine, prompt, params, (), (), None, NO_STANDING)  # type: ignore[arg-type]

    def say(self, *outputs: Output) -> None:
        self.live.dispatch(StepOutputs(list(outputs), EngineStats()))


def test_prompts_that_wait_are_bounded_in_tokens() -> None:
    requests = Requests(100, 1000)
    first = requests.submit(600)
    second = requests.submit(400)
    with pytest.raises(EngineBusy, match="1000 prompt tokens"):
        requests.submit(1)
    requests.say(Output(first.id, [5]))  # its first token: it waits no longer
    assert requests.live.waiting_tokens == 400
    requests.say(Output(first.id, [5]))
    assert requests.live.waiting_tokens == 400
    requests.submit(600)
    with pytest.raises(EngineBusy):
        requests.submit(1)
    requests.live.abort(second.id)
    requests.say(Output(second.id, [], "abort"))
    requests.submit(400)
    requests.live.end_all("shutting_down", "the end")
    assert requests.live.waiting_tokens == 0


def test_a_prompt_of_any_length_is_taken_where_none_waits() -> None:
    requests = Requests(100, 10)
    stream = requests.submit(500)
    with pytest.raises(EngineBusy):
        requests.submit(1)
    requests.say(Output(stream.id, [], "length"))  # a prompt alone
    requests.submit(500)


def test_without_a_bound_of_tokens_requests_are_counted() -> None:
    requests = Requests(2, None)
    for _ in range(6):
        requests.submit(900)
    with pytest.raises(EngineBusy, match="6 requests"):
        requests.submit(1)


def test_what_waits_goes_on_waiting_when_its_engine_dies() -> None:
    requests = Requests(100, 1000)
    begun, waits = requests.submit(10), requests.submit(20)
    requests.say(Output(begun.id, [3]))
    requests.live.detach(None)
    assert requests.live.attach(requests.sent) == 2
    assert requests.live.waiting_tokens == 20
    requests.say(Output(waits.id, [3]), Output(begun.id, [4]))
    assert requests.live.waiting_tokens == 0
