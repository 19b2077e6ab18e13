"""What the HTTP side knows of the rest of the server: one object, made by serving.py, read by every
endpoint.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from minisgl.engine.api import EngineUnavailable
from minisgl.engine.request import salt_of
from minisgl.server import response_store
from minisgl.server.board import Board
from minisgl.server.decoding import IgnoredFields
from minisgl.server.errors import model_not_found, unavailable
from minisgl.server.event_pump import EventPump
from minisgl.server.http import BodyRoom
from minisgl.server.metrics import Metrics
from minisgl.text.formats import AnswerFormats

if TYPE_CHECKING:
    from minisgl.config import ServerArgs
    from minisgl.engine.api import EngineApi
    from minisgl.engine.changes import Changes
    from minisgl.ipc.messages import EngineInfo
    from minisgl.text.frontend import TextFrontend


@dataclass
class ServerState:
    """`text` is None until the tokenizer is loaded; nothing reads it, the sampling's defaults or
    the client's info before the client is ready.
    """

    args: ServerArgs
    client: EngineApi
    model_names: tuple[str, ...]  # answers say the first
    text: TextFrontend | None = None
    formats: AnswerFormats = field(default_factory=AnswerFormats)
    changes: Changes | None = None  # of replicas, where an operator may make some
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # SamplingParams' fields
    metrics: Metrics = field(default_factory=Metrics)
    pump: EventPump = field(default_factory=EventPump)
    ignored_fields: IgnoredFields = field(default_factory=IgnoredFields)
    bodies: BodyRoom = field(init=False)
    root: str = ""  # what the model is called where it comes from
    decoding: asyncio.Lock = field(default_factory=asyncio.Lock)  # of large bodies
    created: int = field(
        default_factory=lambda: int(time.time())
    )  # Unix seconds, shown with the model
    responses: response_store.ResponseStore = field(init=False)
    board: Board = field(init=False)

    def __post_init__(self) -> None:
        self.root = self.args.model or self.model_name
        self.client.on_steps = self.metrics.iteration_tokens.observe
        self.board = Board(self.metrics, self.client)
        self.bodies = BodyRoom(max(self.args.max_all_bodies_bytes, self.args.max_body_bytes))
        self.responses = response_store.ResponseStore(self.args.response_store_bytes)

    @property
    def model_name(self) -> str:
        """What answers and metrics call the model."""
        return self.model_names[0]

    @property
    def operators(self) -> bool:
        """Whether somebody with a key of theirs may change replicas."""
        return self.args.admin_api_key is not None and self.changes is not None

    @property
    def created_at(self) -> str:
        """The time of `created` in words, as Anthropic's API and Ollama's show it."""
        return datetime.fromtimestamp(self.created, timezone.utc).isoformat().replace("+00:00", "Z")

    @property
    def serving(self) -> TextFrontend | None:
        """The tokenizer's side; None unless requests can be served now."""
        return self.text if self.client.state == "ready" else None

    def frontend(self) -> TextFrontend:
        """The same, where it is needed. Raises ApiError 503."""
        text = self.serving
        if text is None:
            raise unavailable(self.client.state if self.client.state != "ready" else "starting")
        return text

    def info(self) -> EngineInfo | None:
        """What was loaded; None while the model is still loading."""
        try:
            return self.client.info
        except EngineUnavailable:
            return None

    def prefix_salt(self, cache_salt: str | None, api_key: int | None) -> bytes | None:
        """What a request with this salt, from the client with the key of this number, shares
        computed prefixes by.
        """
        apart = self.args.cache_per_key and api_key is not None
        return salt_of(cache_salt or "", self.args.api_key[api_key or 0] if apart else "")

    def check_model(self, name: str | None) -> None:
        """ApiError 404 unless `name` is one of the served model's, or an adapter's; a request that
        names none gets what is there.
        """
        if name and name not in self.model_names and self.client.adapters.find(name) is None:
            raise model_not_found(name, self.model_name)

    def adapter_of(self, name: str | None) -> int:
        """The number of the adapter that a request for this model has; 0: none."""
        adapter = self.client.adapters.find(name) if name else None
        return 0 if adapter is None or name in self.model_names else adapter.id

    def answer_name(self, name: str | None) -> str:
        """What an answer to a request for this model calls it."""
        return name if name and self.adapter_of(name) else self.model_name
