"""GET pages: what is served, whether it lives, whether it is ready, and its metrics."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from minisgl.server.errors import unavailable
from minisgl.server.http import json_response
from minisgl.server.metrics import EngineFigures
from minisgl.server.state import ServerState
from minisgl.server.tokens import tokenizer_info
from minisgl.version import __version__


class StatusPages:
    """The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def models(self, request: Request) -> Response:
        """GET /v1/models: a page as OpenAI's API and Anthropic's have it, of all models."""
        names = [*self._state.model_names, *self._state.client.adapters.names]
        ends = {"first_id": names[0], "last_id": names[-1], "has_more": False}
        return json_response({"object": "list", "data": [*map(self._card, names)], **ends})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}. ApiError 404."""
        name = request.path_params["name"]
        self._state.check_model(name)
        return json_response(self._card(name or self._state.model_name))

    async def tokenizer_info(self, request: Request) -> Response:
        """GET /tokenizer_info. ApiError 503 while nothing is served."""
        return json_response(tokenizer_info(self._state.frontend().tokenizer))

    async def health(self, request: Request) -> Response:
        """GET /health: whether the server lives, and its engine's state. An engine that is busy,
        loading or being restarted isn't dead; "phase" says what it is at.
        """
        client = self._state.client
        if client.state == "failed":
            raise unavailable("failed")
        phase = {"phase": client.phase} if client.phase else {}
        return json_response({"status": "ok", "engine": client.state, **phase, **self._replicas()})

    async def ready(self, request: Request) -> Response:
        """GET /ready: whether a request would be served now."""
        self._state.frontend()
        return json_response({"status": "ready", **self._replicas()})

    async def version(self, request: Request) -> Response:
        """GET /version"""
        return json_response({"version": __version__})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, in the text format of Prometheus."""
        state = self._state
        body = state.metrics.render(
            state.model_name,
            EngineFigures(
                stats=state.client.stats,
                num_streams=state.client.num_live,
                waiting_tokens=state.client.waiting_tokens,
                num_replaying=state.client.num_replaying,
                num_restarts=state.client.num_restarts,
                info=state.info(),
                memory_fraction=state.args.memory_fraction,
                replicas=state.client.replicas,
            ),
            alias=state.args.metrics_alias_prefix,
        )
        return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})

    def _replicas(self) -> dict[str, Any]:
        """How many of several replicas serve; nothing of a lone engine."""
        replicas = self._state.client.replicas
        if not replicas:
            return {}
        ready = sum(one.state == "ready" for one in replicas)
        return {"replicas": {"ready": ready, "all": len(replicas)}}

    def _card(self, name: str) -> dict[str, Any]:
        state = self._state
        info = state.info()
        adapter = None if name in state.model_names else state.client.adapters.find(name)
        return {
            "id": name,
            "object": "model",
            "created": state.created,
            "owned_by": "minisgl",
            # As Anthropic's API has it.
            "type": "model",
            "display_name": name,
            "created_at": state.created_at,
            # Benchmarks look for the tokenizer there.
            "root": state.root if adapter is None else adapter.path,
            "parent": None if adapter is None else state.model_name,
            "max_model_len": info and info.max_model_len,
            "permission": [
                {
                    "id": f"modelperm-{name}",
                    "object": "model_permission",
                    "created": state.created,
                    "allow_create_engine": False,
                    "allow_sampling": True,
                    "allow_logprobs": True,
                    "allow_search_indices": False,
                    "allow_view": True,
                    "allow_fine_tuning": False,
                    "organization": "*",
                    "group": None,
                    "is_blocking": False,
                }
            ],
        }
