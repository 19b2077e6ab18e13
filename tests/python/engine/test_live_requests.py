"""Who is let in: bounds of requests and of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from minisgl.engine.admission import Admission
from minisgl.engine.api import EngineBusy, PromptShape
from minisgl.engine.live_requests import LiveRequests
from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import (
    Abort,
    EngineInfo,
    EngineStats,
    Output,
    Standing,
    StepOutputs,
    Submit,
)
from minisgl.sampling_params import SamplingParams

INFO = EngineInfo(vocab_size=100, max_model_len=1000, max_running=4)


class Requests:
    """Live requests of an engine that takes everything and says what it is told to."""

    def __init__(self, max_waiting: int, max_waiting_tokens: int | None) -> None:
        self.live = LiveRequests(Admission(max_waiting, max_waiting_tokens))
        self.live.attach(self.sent)

    def sent(self, message: Submit | Abort) -> bool:
        return True

    def submit(self, prompt_tokens: int, share: int = 0) -> TokenStream:
        return self.submit_choice([1] * prompt_tokens, share=share)

    def submit_choice(
        self,
        prompt: list[int],
        *,
        info: EngineInfo = INFO,
        share: int = 0,
        prompt_logprobs: int | None = None,
    ) -> TokenStream:
        engine = SimpleNamespace(state="ready", info=info)
        params = SamplingParams(max_tokens=10, prompt_logprobs=prompt_logprobs)
        return self.live.submit(engine, prompt, params, (), (), None, Standing(share=share))  # type: ignore[arg-type]

    def say(self, *outputs: Output) -> None:
        self.live.dispatch(StepOutputs(list(outputs), EngineStats()))


@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("live", [0, 10])
def test_what_would_be_taken_alone_is_known_beforehand(live: int, prefix_cache: bool) -> None:
    """Whatever is live: what is refused has no place among 4 + 6 requests and 100 tokens."""
    requests = Requests(6, 100)
    for _ in range(live):
        requests.submit(1)
    info = msgspec.structs.replace(INFO, prefix_cache=prefix_cache)

    def refusal(*shapes: PromptShape) -> str:
        return requests.live.refusal(info, shapes)

    assert not refusal(PromptShape(10, 10))
    assert not refusal(*[PromptShape(10)] * 10)
    assert not refusal(PromptShape(900))
    assert refusal(PromptShape(1, 11)) == (
        "11 answers are more than the 10 that may wait or run at a time "
        "(--max-running and --max-waiting)."
    )
    assert "11 answers" in refusal(PromptShape(1, 5), PromptShape(1, 6))
    assert "101 tokens together, of at most 100" in refusal(PromptShape(51), PromptShape(50))
    assert "102 tokens" in refusal(PromptShape(51, 2, shared=False))
    assert bool(refusal(PromptShape(51, 2))) == (not prefix_cache)


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


def test_a_key_that_fills_the_queue_keeps_no_other_out() -> None:
    """Of 8 requests, and of 1000 tokens; a quarter of each is there for others."""
    requests = Requests(4, None)
    streams = [requests.submit(1, share=1) for _ in range(8)]
    with pytest.raises(EngineBusy, match="8 requests are waiting or running, of at most 8"):
        requests.submit(1, share=1)
    requests.submit(1, share=2)
    requests.submit(1, share=2)
    for share in (1, 2, 3):
        with pytest.raises(EngineBusy):
            requests.submit(1, share=share)
    for stream in streams[:3]:
        requests.say(Output(stream.id, [5], "length"))
    requests.submit(1, share=1)  # the one place that is free
    with pytest.raises(EngineBusy):
        requests.submit(1, share=1)
    assert requests.submit(1, share=2)

    requests = Requests(100, 1000)
    requests.submit(900, share=1)
    with pytest.raises(EngineBusy, match="900 prompt tokens are waiting"):
        requests.submit(200, share=1)
    requests.submit(200, share=2)
    with pytest.raises(EngineBusy):
        requests.submit(200, share=2)


def test_choices_of_a_prompt_that_is_taken_as_nothing_waits_are_taken_too() -> None:
    requests = Requests(100, 10)
    prompt = [1] * 500
    for _ in range(3):
        requests.submit_choice(prompt, info=msgspec.structs.replace(INFO, prefix_cache=True))
    assert requests.live.waiting_tokens == 500


def test_the_prompt_of_several_choices_waits_once() -> None:
    cached, plain = (msgspec.structs.replace(INFO, prefix_cache=on) for on in (True, False))
    requests = Requests(100, 1000)
    prompt = [1] * 600
    first, second = (requests.submit_choice(prompt, info=cached) for _ in range(2))
    assert requests.live.waiting_tokens == 600
    requests.live.abort(first.id)
    requests.say(Output(first.id, [], "abort"))
    assert requests.live.waiting_tokens == 600
    requests.say(Output(second.id, [5]))
    assert requests.live.waiting_tokens == 0
    requests.submit_choice(prompt, info=cached)  # of the second's, which is computed
    assert requests.live.waiting_tokens == 0
    requests.submit_choice(list(prompt), info=cached)  # another request's
    assert requests.live.waiting_tokens == 600
    requests.live.end_all("shutting_down", "the end")
    requests.live.attach(requests.sent)

    requests.submit_choice(prompt, info=plain)
    with pytest.raises(EngineBusy):
        requests.submit_choice(prompt, info=plain)
    requests.live.end_all("shutting_down", "the end")
    requests.live.attach(requests.sent)
    requests.submit_choice(prompt, info=cached)
    with pytest.raises(EngineBusy):  # its rows are computed each time
        requests.submit_choice(prompt, info=cached, prompt_logprobs=0)
