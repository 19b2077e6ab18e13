"""Ollama's pages about what is served: /api/tags, /api/ps, /api/show and /api/version."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from minisgl.server import errors
from minisgl.server.http import Exchange, json_response, send_json
from minisgl.server.ollama import OllamaEndpoint, check_tagged, tagged
from minisgl.server.ollama_schemas import OllamaShowRequest

if TYPE_CHECKING:
    from minisgl.ipc.messages import EngineInfo
    from minisgl.server.state import ServerState

# The Ollama whose API this is: clients look whether it has what they need.
API_VERSION = "0.13.0"
# When a model is unloaded that never is.
_NEVER = "9999-12-31T23:59:59Z"
_REFUSED = {
    "/api/pull": "POST",
    "/api/push": "POST",
    "/api/create": "POST",
    "/api/copy": "POST",
    "/api/delete": "DELETE",
}


def refused_routes() -> list[Route]:
    """Those by which clients change what is served: nothing is done there."""
    return [_refused(path, method) for path, method in _REFUSED.items()]


def _refused(path: str, method: str) -> Route:
    async def refuse(request: Request) -> NoReturn:
        raise errors.bad_request(
            f"{path} is not supported: the server has the model that it was started with, and its "
            "operator chooses another one.",
            code="unsupported",
        )

    return Route(path, refuse, methods=[method])


class OllamaPages:
    """The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state

    async def root(self, request: Request) -> Response:
        """GET /: by this, clients see whether anybody is there."""
        return PlainTextResponse("minisgl is running")

    async def version(self, request: Request) -> Response:
        """GET /api/version: of the API. The server's is at /version."""
        return json_response({"version": API_VERSION})

    async def tags(self, request: Request) -> Response:
        """GET /api/tags: what is served, once per name."""
        state = self._state
        about = {**_about(state), "modified_at": state.created_at}
        return json_response(
            {
                "models": [
                    {**_named(name), **about}
                    for name in [*state.model_names, *state.client.adapters.names]
                ]
            }
        )

    async def ps(self, request: Request) -> Response:
        """GET /api/ps: the same models, which are all loaded. None while they aren't."""
        state = self._state
        if state.serving is None:
            return json_response({"models": []})
        info = state.client.info
        about = _about(state)
        about |= {
            "expires_at": _NEVER,
            "size_vram": 0 if info.device.startswith("CPU") else about["size"],
            "context_length": info.max_model_len,
        }
        return json_response(
            {
                "models": [
                    {**_named(name), **about}
                    for name in [*state.model_names, *state.client.adapters.names]
                ]
            }
        )


class OllamaShow(OllamaEndpoint):
    """POST /api/show: what is known of the model."""

    decoder = msgspec.json.Decoder(OllamaShowRequest, strict=False)

    def check_model(self, request: OllamaShowRequest) -> None:
        """ApiError 404 where the request names a model that isn't served."""
        check_tagged(self.state, request.model or request.name)

    async def answer(self, exchange: Exchange, request: OllamaShowRequest, arrived: float) -> None:
        """Raises ApiError 503 while nothing is served."""
        state = self.state
        text = state.frontend()
        info = state.client.info
        source = text.tokenizer.chat_template
        template = "" if source is None else next(iter(source.texts.values()), "")
        sampling = sorted(state.sampling_defaults.items())
        parameters = [f"{_OPTIONS.get(name, name)} {value:g}" for name, value in sampling]
        await send_json(
            exchange.send,
            {
                "modelfile": "\n".join(
                    [f"FROM {state.root}", *(f"PARAMETER {line}" for line in parameters)]
                ),
                "parameters": "\n".join(parameters),
                "template": template,
                "details": _details(info),
                "model_info": _model_info(info),
                "capabilities": _capabilities(state),
                "modified_at": state.created_at,
            },
        )


# Names of sampling parameters that are others here.
_OPTIONS = {"repetition_penalty": "repeat_penalty"}


def _named(name: str) -> dict[str, Any]:
    shown = tagged(name)
    return {"name": shown, "model": shown}


def _about(state: ServerState) -> dict[str, Any]:
    """A model as lists have it. Its digest is of what it is called where it comes from: nobody
    reads all of its bytes for that.
    """
    info = state.info()
    return {
        "size": info.weight_bytes * state.args.tp if info else 0,
        "digest": hashlib.sha256(state.root.encode("utf-8", "surrogatepass")).hexdigest(),
        "details": _details(info),
    }


def _details(info: EngineInfo | None) -> dict[str, Any]:
    """`info`: None while the model is still loading."""
    family = info.family if info else ""
    return {
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "",
        "quantization_level": info.weight_dtype.upper() if info else "",
    }


def _model_info(info: EngineInfo) -> dict[str, Any]:
    family = info.family
    return {
        "general.architecture": family,
        f"{family}.context_length": info.max_model_len,
        f"{family}.embedding_length": info.hidden_size,
        f"{family}.block_count": info.num_layers,
        f"{family}.vocab_size": info.vocab_size,
    }


def _capabilities(state: ServerState) -> list[str]:
    """What requests may ask for. Raises ApiError 503 while nothing is served."""
    tokenizer, formats = state.frontend().tokenizer, state.formats
    able = {
        "completion": True,
        "tools": formats.tools is not None,
        "thinking": formats.reasoning is not None,
        "insert": tokenizer.fill_in_middle is not None,
    }
    return [name for name, is_so in able.items() if is_so]
