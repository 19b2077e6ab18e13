"""One live request in the server: what was asked, what was received, and what waits to be read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from minisgl.engine.backlog import WaitingPrompt
from minisgl.ipc.messages import ErrorCode, Output, Submit


class TokenStream:
    """The outputs of one request, for one reader.

    It keeps the request with its seed and the tokens received, so that another engine could go on
    where this one ended. What it holds is bounded by the request's max_tokens, however slow the
    reader is.
    """

    def __init__(
        self, request: Submit, abort: Callable[[int], None] = lambda request_id: None
    ) -> None:
        """`abort` is the engine's: it ends the request with this id."""
        self.request = request
        self.received: list[int] = []  # token ids, read or not
        self.drafts = (0, 0)  # drafts that were tried for it, and those that held; at the end
        self.num_cached = 0  # prompt tokens that were found in the prefix cache
        self.finish = ""  # the reason, once the end has arrived
        self.session: str | None = None  # whose requests one engine should have
        self.num_deaths = 0  # engines that died with this request
        self.trial_tokens = 0  # those that it must get until it is suspected no longer
        self.prompt: WaitingPrompt | None = None  # in the backlog, which this request may share
        self._abort = abort
        self._pending: Output | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._waits_for_end = False
        self._exhausted = False
        self._listener: Callable[[], None] | None = None

    @property
    def id(self) -> int:
        """The request's id in the engine."""
        return self.request.id

    @property
    def finished(self) -> bool:
        """Whether the last output has arrived (it may not have been read yet)."""
        return bool(self.finish)

    @property
    def tokens(self) -> list[int]:
        """The prompt and what was received: what an engine has computed, or goes on behind."""
        return self.request.prompt + self.received if self.received else self.request.prompt

    def belongs_to(self, abort: Callable[[int], None]) -> None:
        """An engine has the request from now on; `abort` is that one's."""
        self._abort = abort

    def resumption(self) -> Submit:
        """The request for an engine that is to go on where the stream stopped."""
        if not self.received:
            return self.request
        # A prompt's log probabilities came with the first token.
        params = msgspec.structs.replace(self.request.params, prompt_logprobs=None)
        return msgspec.structs.replace(
            self.request,
            prompt=self.tokens,
            params=params,
            num_resumed=len(self.received),
        )

    async def next(self, *, whole: bool = False) -> Output:
        """Everything that arrived since the last call, in one output; waits when nothing did, or
        with `whole` until the end has arrived.

        The last one has a `finish`; after it StopAsyncIteration is raised.
        """
        if self._exhausted:
            raise StopAsyncIteration
        self._waits_for_end = whole
        while self._pending is None or (whole and not self.finish):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self.take()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Who is called whenever there is something to take where there was nothing, now to begin
        with; None: nobody. For a reader that doesn't wait in next().
        """
        self._listener = listener
        if listener is not None and self._pending is not None:
            listener()

    @property
    def next_output(self) -> Output:
        """What take() would return. There has to be something."""
        assert self._pending is not None, "nothing has arrived"
        return self._pending

    def take(self) -> Output:
        """What next() would return at once. There has to be something."""
        output = self.next_output
        self._pending = None
        self._exhausted = bool(output.finish)
        return output

    def abort(self) -> None:
        """Ends the request now: the reader gets finish "abort". Does nothing when it has ended
        already.
        """
        if not self.finish:
            self._abort(self.id)

    def fail(self, code: ErrorCode, sentence: str) -> None:
        """Ends the stream with an error. Does nothing when it has ended already."""
        if not self.finish:
            self.deliver(Output(self.id, [], "error", code, sentence))

    def deliver(self, output: Output) -> None:
        """Takes an output for the reader; those after the end are left out."""
        if self.finish:
            return
        self.finish = output.finish
        if self.received:  # else another engine's would count, too
            output.num_cached = 0
        self.num_cached += output.num_cached
        if output.finish:
            self.drafts = output.drafts
        self.received += output.token_ids
        if self._pending is None:
            self._pending = output
            if self._listener is not None:
                self._listener()
        else:
            self._pending.merge(output)
        if self._waits_for_end and not output.finish:
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
