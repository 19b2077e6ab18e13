"""Detokenizers of streams: LocalDetokenizer in this process, RemoteDetokenizer in another."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from minisgl.text.errors import WorkerLost
from minisgl.text.messages import CloseText, Encoded, OpenText, PushTokens, Text
from minisgl.text.worker_pool import WorkerClient
from minisgl.tokenizer import IncrementalDetokenizer


class Detokenizer:
    """Token ids of one stream to text, as they come: IncrementalDetokenizer here or elsewhere."""

    def __init__(self) -> None:
        self.match: str | None = None  # the stop string that came; the text is cut there
        self.num_tokens = 0  # taken so far, up to the one that completed a stop string

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        """Text that may be shown now; with `final` the rest too, and then nothing more may come.

        `stop_token` ended the stream behind the last of these ids: it has no part in the text, but
        may complete a stop string. Raises WorkerLost when the process that has the stream's text
        died and none came in time.
        """
        raise NotImplementedError

    def push_here(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str | None:
        """push() without waiting, where the text is made in this process. None, and nothing was
        pushed, where it is made in another.
        """
        return None

    async def finish(self) -> str:
        """The rest of the text."""
        return await self.push((), final=True)


class LocalDetokenizer(Detokenizer):
    """A stream's text in this process."""

    def __init__(self, detokenizer: IncrementalDetokenizer) -> None:
        super().__init__()
        self.incremental = detokenizer

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        """As Detokenizer says; it never waits."""
        return self.push_here(token_ids, final=final, stop_token=stop_token)

    def push_here(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        """As Detokenizer says; never None."""
        detokenizer = self.incremental
        text = detokenizer.push(token_ids)
        if final:
            text += detokenizer.finish(stop_token)
        self.match, self.num_tokens = detokenizer.match, detokenizer.num_tokens
        return text


class RemoteDetokenizer(Detokenizer):
    """A stream's text in the detokenizer process. When that dies, the next one makes the text anew
    from all ids so far, and what was given out before is cut off: text doesn't depend on how its
    ids are divided into pushes.
    """

    def __init__(self, worker: WorkerClient, opening: OpenText) -> None:
        super().__init__()
        self._worker = worker
        self._opening = opening
        self._token_ids: list[int] = []  # all so far
        self._num_characters = 0  # given out so far
        self._life = 0  # the number of the process that has the stream; 0: none
        with contextlib.suppress(WorkerLost):  # push() waits for the next one
            self._open(worker.life)

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        """As Detokenizer says."""
        self._token_ids += token_ids
        if self._life == self._worker.life:
            message = PushTokens(self._opening.id, list(token_ids), final, stop_token)
            with contextlib.suppress(WorkerLost):
                answer = await self._worker.ask(message.id, message)
                return self._take(answer, 0, final)
        seconds = self._worker.policy.reopen_seconds
        try:
            answer = await asyncio.wait_for(self._push_all(final, stop_token), seconds)
        except asyncio.TimeoutError:
            raise WorkerLost(f"no detokenizer process came back within {seconds:g} s") from None
        return self._take(answer, self._num_characters, final)

    async def _push_all(self, final: bool, stop_token: int | None) -> Encoded | Text:
        """The answer of the first process from now on that lives long enough to give it."""
        message = PushTokens(self._opening.id, self._token_ids, final, stop_token)
        while True:
            life = await self._worker.next_life(self._life)
            with contextlib.suppress(WorkerLost):
                self._open(life)
                return await self._worker.ask(message.id, message)

    def _open(self, life: int) -> None:
        self._life = life
        self._worker.tell(self._opening)

    def _take(self, answer: Encoded | Text, num_known: int, final: bool) -> str:
        assert isinstance(answer, Text)
        if final:
            self._life = 0
        self.match, self.num_tokens = answer.match, answer.num_tokens
        text = answer.text[num_known:]
        self._num_characters += len(text)
        return text

    def __del__(self) -> None:
        # A stream that ends early: the other process need not keep its text.
        if self._life == self._worker.life:
            with contextlib.suppress(Exception):
                self._worker.tell(CloseText(self._opening.id))
