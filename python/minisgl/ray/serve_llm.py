"""MinisglServer: a server class for Ray Serve LLM (`LLMConfig(server_cls=MinisglServer)`), which
then has minisgl in the place of vLLM. Its classes of requests and answers come with vLLM or SGLang,
and are only imported where one is asked for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import fields
from typing import Any

from starlette.types import ASGIApp

from minisgl.config import OptionError, ServerArgs
from minisgl.distributed_info import DistributedInfo
from minisgl.log import start_logging
from minisgl.ray.embedded import EmbeddedServer, post
from minisgl.ray.serve import MAX_ONGOING, actor_options

# vLLM's names of what we have, too.
ALIASES = {
    "max_num_seqs": "max_running",
    "max_num_batched_tokens": "max_batch_tokens",
    "gpu_memory_utilization": "memory_fraction",
    "block_size": "page_size",
    "kv_cache_dtype": "kv_dtype",
}
FORWARDED = ("authorization", "x-request-id")  # headers of the client


def server_args(llm_config: Any) -> ServerArgs:
    """What an LLMConfig says, in our words: `engine_kwargs` are ServerArgs' fields, or what vLLM
    calls them. Raises OptionError for a name that is neither, and for bad values.
    """
    loading = llm_config.model_loading_config
    source = loading.model_source or loading.model_id
    if not isinstance(source, str):
        raise OptionError("model", f"must be an id or a path, got {type(source).__name__}")
    known = {one.name for one in fields(ServerArgs)}
    options: dict[str, Any] = {"model": source, "served_model_name": (loading.model_id,)}
    for given, value in llm_config.engine_kwargs.items():
        name = ALIASES.get(given, given)
        if name == "tensor_parallel_size":
            options["tp_info"] = DistributedInfo(0, value)
        elif name == "enable_prefix_caching":
            options["disable_prefix_cache"] = not value
        elif name in known:
            options[name] = value
        else:
            raise OptionError(given, "is no engine_kwarg that minisgl knows")
    return ServerArgs(**options)


class MinisglServer:
    """The protocol of Ray Serve LLM's servers: what it asks of a replica's object. Requests go
    through the application that `minisgl-serve` has, with or without Ray Serve LLM's own ingress
    before it (direct streaming).
    """

    @classmethod
    def get_deployment_options(cls, llm_config: Any) -> dict[str, Any]:
        """Options of the deployment: those of the configuration, and by default what its ranks
        need, which are child processes of the replica's.
        """
        options: dict[str, Any] = copy.deepcopy(llm_config.deployment_config)
        args = server_args(llm_config)
        gpus = args.device == "cuda" or bool(llm_config.accelerator_type)
        needed: dict[str, Any] = actor_options(args, gpus)
        if llm_config.accelerator_type:
            needed["accelerator_type"] = llm_config.accelerator_type
        if llm_config.runtime_env:
            needed["runtime_env"] = llm_config.runtime_env
        options["ray_actor_options"] = {**needed, **options.get("ray_actor_options", {})}
        options.setdefault("max_ongoing_requests", MAX_ONGOING)
        return options

    async def __init__(self, llm_config: Any) -> None:  # type: ignore[misc]
        self._config = llm_config
        await self.start()

    async def start(self) -> None:
        """Loads the model and starts its ranks."""
        args = server_args(self._config)
        start_logging(args.log_level, args.log_format)
        self._server = await EmbeddedServer.start(args)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._server.app

    async def check_health(self) -> None:
        """Ray Serve replaces a replica where it raises."""
        self._server.check_health()

    async def record_routing_stats(self) -> dict[str, Any]:
        """For request routers that ask: nothing, as prefixes are seen by the router itself."""
        return {}

    async def llm_config(self) -> Any:
        """The configuration."""
        return self._config

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """The events of a stream, as text, or one ChatCompletionResponse or ErrorResponse."""
        kind = "ChatCompletionResponse"
        return self._answers("/v1/chat/completions", kind, request, raw_request_info)

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """The same for a CompletionRequest."""
        return self._answers("/v1/completions", "CompletionResponse", request, raw_request_info)

    async def tokenize(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """One TokenizeResponse or ErrorResponse."""
        return self._answers("/tokenize", "TokenizeResponse", request, raw_request_info)

    async def detokenize(self, request: Any, raw_request_info: Any = None) -> AsyncIterator[Any]:
        """One DetokenizeResponse or ErrorResponse."""
        return self._answers("/detokenize", "DetokenizeResponse", request, raw_request_info)

    async def _answers(
        self, path: str, kind: str, request: Any, raw_request_info: Any
    ) -> AsyncIterator[Any]:
        given: Mapping[str, str] = getattr(raw_request_info, "headers", None) or {}
        headers = {name: text for name, text in given.items() if name.lower() in FORWARDED}
        # What the client said and no more: its own classes' defaults are not ours.
        body = request.model_dump_json(exclude_unset=True).encode()
        async with post(self._server.app, path, body, headers) as answer:
            if answer.is_stream:
                async for text in answer.texts():
                    yield text
                return
            content = json.loads("".join([text async for text in answer.texts()]) or "{}")
            yield _object(kind, answer.status, content)

    async def __del__(self) -> None:
        """Ray Serve awaits it at a replica's end, after its last request."""
        if hasattr(self, "_server"):
            await self._server.close()


def _object(kind: str, status: int, content: dict[str, Any]) -> Any:
    """An answer as one of Ray Serve LLM's classes."""
    from ray.llm._internal.serve.core.configs import openai_api_models as models

    if status == 200:
        return getattr(models, kind)(**content)
    error = content.get("error", {})
    return models.ErrorResponse(
        error=models.ErrorInfo(
            message=error.get("message", "The server failed."),
            type=error.get("type", "server_error"),
            param=error.get("param"),
            code=status,
        )
    )
