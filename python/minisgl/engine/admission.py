"""Who is let in, of one engine or of several together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from minisgl.engine.api import EngineBusy, EngineUnavailable
from minisgl.engine.backlog import Backlog, SharedBound, WaitingPrompt
from minisgl.engine.request import make_request
from minisgl.engine.stream import TokenStream

if TYPE_CHECKING:
    from minisgl.engine.api import EngineApi, PromptShape
    from minisgl.ipc.messages import EngineInfo, Standing
    from minisgl.sampling_params import SamplingParams


class Admission:
    """The bounds of the queue, which API keys share (SharedBound), and what is in it: each stream
    from submit() to end(), whichever engine has it.
    """

    def __init__(self, max_waiting: int, max_waiting_tokens: int | None = None) -> None:
        """`max_waiting`: requests taken beyond those that run at once; `max_waiting_tokens`: tokens
        of all prompts that have no answer yet; None: any number.
        """
        self.backlog = Backlog()
        self._max_waiting = max_waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._live = SharedBound()
        self._latest: TokenStream | None = None  # whose prompt the next request may share
        self._next_id = 0  # of requests: no two engines ever have the same one

    def refusal(self, info: EngineInfo, prompts: Sequence[PromptShape]) -> str:
        """EngineApi.refusal() of engines of which `info` is."""
        count, most = sum(one.choices for one in prompts), self._most(info)
        if count > most:
            return (
                f"{count} answers are more than the {most} that may wait or run at a time "
                "(--max-running and --max-waiting)."
            )
        waiting: list[int] = []  # the tokens of each prompt that is computed
        for one in prompts:
            waiting += [one.tokens] * (1 if one.shared and info.prefix_cache else one.choices)
        total, bound = sum(waiting), self._max_waiting_tokens
        if bound is not None and total > bound and len(waiting) > 1:
            return (
                f"its prompts have {total} tokens together, of at most {bound} that may wait at a "
                "time (--max-waiting-tokens)."
            )
        return ""

    def _most(self, info: EngineInfo) -> int:
        """How many requests may be live."""
        return info.max_running + self._max_waiting

    def submit(
        self,
        engine: EngineApi,
        prompt_ids: list[int],
        params: SamplingParams,
        end_ids: Sequence[int],
        bad_words: Sequence[list[int]],
        prefix_salt: bytes | None,
        standing: Standing,
        session: str | None,
        place: Callable[[TokenStream], bool],
    ) -> TokenStream:
        """EngineApi.submit() of `engine`, which may be several. `place` gives the stream to the one
        that is to serve it; False where that can't get it.
        """
        if engine.state != "ready":
            raise EngineUnavailable(engine.state)
        info = engine.info
        shared = self._check(info, prompt_ids, params, prefix_salt, standing.share)
        request = make_request(
            self._next_id, prompt_ids, params, info, end_ids, bad_words, prefix_salt, standing
        )
        stream = TokenStream(request)
        stream.session = session
        if not place(stream):
            raise EngineUnavailable("restarting")
        self._next_id += 1
        self._begin(stream, shared)
        return stream

    def _check(
        self,
        info: EngineInfo,
        prompt_ids: list[int],
        params: SamplingParams,
        prefix_salt: bytes | None,
        share: int,
    ) -> WaitingPrompt | None:
        """Whether one more request may come; `info` is of all that serve. Raises EngineBusy.
        Returns what waits already of its prompt; None: nothing.
        """
        most = self._most(info)
        if not self._live.allows(share, 1, most):
            raise EngineBusy(
                f"{self._live.total} requests are waiting or running, of at most {most} "
                "(--max-running and --max-waiting)."
            )
        shared = self._shared_prompt(prompt_ids, params, prefix_salt) if info.prefix_cache else None
        waiting, tokens = self.backlog.waiting, 0 if shared else len(prompt_ids)
        # Where nothing waits, a prompt of any length is taken, and its choices with it.
        is_bounded = waiting.total > 0 and tokens > 0
        if is_bounded and not waiting.allows(share, tokens, self._max_waiting_tokens):
            raise EngineBusy(
                f"{waiting.total} prompt tokens are waiting, and the {tokens} of this prompt would "
                f"make them more than {self._max_waiting_tokens} (--max-waiting-tokens)."
            )
        return shared

    def _begin(self, stream: TokenStream, shared: WaitingPrompt | None) -> None:
        """The request is live from now on. `shared` is _check()'s."""
        share = stream.request.standing.share
        self._live.add(share, 1)
        if shared is None:
            stream.prompt = self.backlog.add(len(stream.request.prompt), share)
        else:
            stream.prompt = shared
            shared.requests += 1
        self._latest = stream

    def end(self, stream: TokenStream) -> None:
        """It is live no more."""
        self._live.add(stream.request.standing.share, -1)
        if stream.prompt is not None:
            self.backlog.drop(stream.prompt)
        if stream is self._latest:
            self._latest = None

    def _shared_prompt(
        self, prompt_ids: list[int], params: SamplingParams, prefix_salt: bytes | None
    ) -> WaitingPrompt | None:
        """The prompt of the request before this one where that waits and is the same: of one choice
        of several. One whose log probabilities are wanted is computed anew.
        """
        latest = self._latest
        if latest is None or latest.request.prompt is not prompt_ids:
            return None
        if latest.request.prefix_salt != prefix_salt or params.prompt_logprobs is not None:
            return None
        return latest.prompt
