"""What several choices say whose text is made in another process, while their tokens go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from minisgl.engine.stream import TokenStream
from minisgl.ipc.messages import NO_STANDING
from minisgl.sampling_params import SamplingParams
from minisgl.server.generation import AskedPrompt, Generation
from minisgl.server.metrics import Metrics
from minisgl.text.detokenizer import Detokenizer
from minisgl.text.frontend import TextFrontend
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer
from tests.python.server.byte_tokenizer import make_tokenizer
from tests.python.server.fake_engine import FakeClient, output


class Elsewhere(Detokenizer):
    """Answers some turns of the loop later."""

    def __init__(self, detokenizer: IncrementalDetokenizer) -> None:
        super().__init__()
        self._detokenizer = detokenizer

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        for _ in range(5):
            await asyncio.sleep(0)
        text = self._detokenizer.push(token_ids)
        if final:
            text += self._detokenizer.finish(stop_token)
        self.match = self._detokenizer.match
        self.num_tokens = self._detokenizer.num_tokens
        return text


class TextElsewhere:
    def __init__(self) -> None:
        self.tokenizer: Tokenizer = make_tokenizer()

    def detokenizer(self, options: DetokenizerOptions) -> Detokenizer:
        return Elsewhere(IncrementalDetokenizer(self.tokenizer, options))


async def test_a_choice_ends_once_though_more_tokens_come_until_its_text_says_so() -> None:
    for num_turns in range(1, 8):  # between two tokens
        said = ["abSTOPxxxxxxxxxxxxxxxxxxxx", "hello world, a longer one than the other"]

        async def script(
            _: FakeClient, stream: TokenStream, said: list[str] = said, num_turns: int = num_turns
        ) -> None:
            ids = said[stream.id].encode()
            for number, token_id in enumerate(ids, 1):
                for _turn in range(num_turns):
                    await asyncio.sleep(0)
                if stream.finished:
                    return
                stream.deliver(output(stream, [token_id], "length" if number == len(ids) else ""))

        metrics = Metrics()
        text = cast(TextFrontend, TextElsewhere())
        params = SamplingParams(max_tokens=50, stop=["STOP"])
        with Generation(
            FakeClient(script), text, metrics, arrived=0.0, standing=NO_STANDING
        ) as generation:
            asked = AskedPrompt([1, 2], params, DetokenizerOptions.of(params))
            generation.submit([asked], n=2)
            first, second = await generation.collect()
        assert ("".join(first.texts), first.finish_reason) == ("ab", "stop")
        assert ("".join(second.texts), second.finish_reason) == (said[1], "length")
        assert (metrics.finished["stop"], metrics.finished["length"]) == (1, 1)
