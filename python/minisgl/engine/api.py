"""EngineApi: what those who submit requests know of an engine, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from minisgl.engine.adapters import AdapterBook
    from minisgl.engine.stream import TokenStream
    from minisgl.ipc.messages import EngineInfo, EngineStats, Standing
    from minisgl.sampling_params import SamplingParams

State = Literal["starting", "ready", "restarting", "draining", "failed"]

SHUTTING_DOWN = "the server is shutting down"
_UNAVAILABLE: dict[State, str] = {
    "starting": "the model is still loading",
    "restarting": "the engine is restarting; try again later",
    "draining": SHUTTING_DOWN,
    "failed": "the engine has failed",
}


class EngineBusy(Exception):  # noqa: N818
    """The queue is full (HTTP 429). The sentence, about the limit, is meant for the client."""


class EngineUnavailable(Exception):  # noqa: N818
    """No engine now; the state says why (HTTP 503). The sentence is meant for the client."""

    def __init__(self, state: State) -> None:
        super().__init__(_UNAVAILABLE[state])
        self.state = state


class EngineStartError(Exception):
    """The engine could not be started. The sentence is meant for the screen."""


class HostLost(EngineStartError):  # noqa: N818
    """A host of the engine was lost while it started: nothing that was tried is at fault."""


class ReplicaUnknown(LookupError):  # noqa: N818
    """There is no replica with this number. The sentence is meant for the operator."""


class ReplicaRefused(Exception):  # noqa: N818
    """What was asked of replicas can't be done now. The sentence is meant for the operator."""


@dataclass(frozen=True)
class RankFigures:
    """One rank of an engine, as it was started. Bytes are the device's; 0: none, or not told."""

    device: str
    cores: str  # "" for none in particular
    weight_bytes: int
    kv_cache_bytes: int
    workspace_bytes: int
    graph_bytes: int
    free_bytes: int


def rank_figures(infos: Sequence[EngineInfo]) -> tuple[RankFigures, ...]:
    """Of the ranks with these infos."""
    names = [one.name for one in fields(RankFigures)]
    return tuple(RankFigures(*(getattr(info, name) for name in names)) for info in infos)


@dataclass(frozen=True)
class ReplicaFigures:
    """One of several engines, as it is now."""

    number: int
    state: State
    phase: str  # as in EngineApi
    place: str  # what it has of which host
    model: str  # as the operator calls it
    revision: str  # the model's; "": it has none, or nobody knows it
    num_live: int
    waiting_tokens: int
    num_replaying: int
    num_restarts: int
    stats: EngineStats
    chosen: Mapping[str, int]  # how often it was, by the router's reason
    ranks: Sequence[RankFigures] = ()  # none before it has been ready


class PromptShape(NamedTuple):
    """A prompt of a request, and what is asked for behind it."""

    tokens: int
    choices: int = 1
    shared: bool = True  # the choices may compute it together


class EngineApi(Protocol):
    """An engine that serves requests. All of it belongs to one event loop; only drain() waits."""

    # Called when steps have ended, with the tokens of one (its new ones, and the prompts that it
    # completed) and the number of steps that this is the mean of.
    on_steps: Callable[[float, int], None]

    @property
    def state(self) -> State:
        """Where the engine is between its first start and its end."""

    @property
    def phase(self) -> str:
        """What a start is at ("loading weights 40%", "waiting for hosts [1]"); "" where none is
        under way.
        """

    @property
    def failure(self) -> str:
        """Why the state is "failed", in one sentence; "" in other states."""

    @property
    def info(self) -> EngineInfo:
        """What was loaded and chosen. Raises EngineUnavailable before the first start has ended."""

    @property
    def rank_infos(self) -> Sequence[EngineInfo]:
        """The info of each rank, in their order; of several engines, those of one that serves. None
        before the first start has ended.
        """

    @property
    def stats(self) -> EngineStats:
        """The engine's counters as of the outputs that came last."""

    @property
    def replicas(self) -> Sequence[ReplicaFigures]:
        """Each of several equal engines; none where this is an engine by itself."""

    @property
    def num_live(self) -> int:
        """Requests in the engine, waiting ones included."""

    @property
    def num_restarts(self) -> int:
        """How often the engine was started again after it had died."""

    @property
    def num_replaying(self) -> int:
        """Live requests of an engine that died that have got nothing from the next one yet."""

    @property
    def waiting_tokens(self) -> int:
        """Prompt tokens of the live requests that have got nothing yet."""

    @property
    def retry_after(self) -> int:
        """Seconds until what waits now will have been served, at the rate of late."""

    def refusal(self, prompts: Sequence[PromptShape]) -> str:
        """Why so many requests wouldn't all be taken, a sentence for the client, even where nothing
        else were live; "" where they would. Raises EngineUnavailable before the first start has
        ended.
        """

    def submit(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        end_ids: Sequence[int] = (),
        bad_words: Sequence[list[int]] = (),
        prefix_salt: bytes | None = None,
        standing: Standing = ...,
        session: str | None = None,
    ) -> TokenStream:
        """Queues one request (params.n is the caller's matter); make_request explains `end_ids`,
        `bad_words` and `prefix_salt`. `standing`, by default that of everybody who says nothing,
        decides whose turn it is. Requests with the same `session` are better served by the same of
        several engines.

        Raises ValueError for a request that can't be served, EngineBusy, EngineUnavailable.
        """

    def abort(self, request_id: int) -> None:
        """Ends a request now: its reader gets finish "abort". Ids that aren't live are ignored."""

    @property
    def adapters(self) -> AdapterBook:
        """The LoRA adapters that requests may have."""

    async def load_adapter(self, name: str, path: str) -> None:
        """Loads one, of a folder in PEFT's form, wherever requests may run. Raises AdapterError."""

    def unload_adapter(self, name: str) -> None:
        """No new request may have it; it goes when the live ones that have it have ended. Raises
        AdapterError.
        """

    async def drain(self, timeout: float) -> bool:
        """Refuses new requests from the first moment on and lets the live ones end. Those that are
        still there after `timeout` seconds are aborted with an error.

        Returns whether none had to be.
        """
