"""The ASGI application: routes, and what stands around them."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from minisgl.server.admin import ReplicaPages
from minisgl.server.board_pages import BoardPages
from minisgl.server.chat import ChatCompletions
from minisgl.server.completions import Completions
from minisgl.server.dialects import Dialect
from minisgl.server.embeddings import Embeddings
from minisgl.server.guard import Guard, Protected, routing_error
from minisgl.server.lora import LoraPages
from minisgl.server.message_errors import ANTHROPIC, KEY_HEADER
from minisgl.server.messages import CountTokens, Messages
from minisgl.server.ollama import OllamaChat, OllamaGenerate
from minisgl.server.ollama_embed import OllamaEmbed, OllamaEmbeddings
from minisgl.server.ollama_lines import OLLAMA
from minisgl.server.ollama_pages import OllamaPages, OllamaShow, refused_routes
from minisgl.server.response_pages import StoredResponses
from minisgl.server.responses import CountInputTokens, Responses
from minisgl.server.score import Score
from minisgl.server.state import ServerState
from minisgl.server.status import StatusPages
from minisgl.server.tokens import Detokenize, Tokenize
from minisgl.server.web_pages import WebPages

# Paths where errors aren't OpenAI's, there and below.
DIALECTS: dict[str, Dialect] = {"/api": OLLAMA, "/v1/messages": ANTHROPIC}


class _App(Starlette):
    """Starlette with Guard in the place of its own error middleware, which would be one more call
    for each event of a stream.
    """

    def __init__(self, routes: Sequence[Route], state: ServerState) -> None:
        super().__init__(routes=routes)
        self._templates: dict[object, str] = {route.endpoint: route.path_format for route in routes}
        self._served = state

    def build_middleware_stack(self) -> ASGIApp:
        """The router within Guard."""
        return Guard(
            ExceptionMiddleware(self.router, handlers={HTTPException: routing_error}),
            self._templates,
            DIALECTS,
            self._served,
        )


def _admin_routes(state: ServerState) -> list[Route]:
    """None where nobody has the key to them."""
    key = state.args.admin_api_key
    if key is None:
        return []
    lora = LoraPages(state)
    routes = [
        Route("/v1/load_lora_adapter", lora.load, methods=["POST"]),
        Route("/v1/unload_lora_adapter", lora.unload, methods=["POST"]),
    ]
    if state.changes is not None:
        pages = ReplicaPages(state, state.changes)
        routes += [
            Route("/admin/replicas", pages.replicas, methods=["GET", "POST"]),
            Route("/admin/replicas/replace", pages.replace, methods=["POST"]),
            Route("/admin/replicas/{number}", pages.replica, methods=["DELETE"]),
            Route("/admin/replicas/{number}/restart", pages.restart, methods=["POST"]),
        ]
    for route in routes:
        route.app = Protected(route.app, (key,), numbered=False)
    return routes


def create_app(state: ServerState) -> Starlette:
    """The application over `state`. All that works for a client needs the API key, where one is
    set.
    """
    pages = StatusPages(state)
    ollama = OllamaPages(state)
    open_routes = [
        Route("/health", pages.health),
        Route("/ready", pages.ready),
        Route("/metrics", pages.metrics),
        Route("/version", pages.version),
        Route("/api/version", ollama.version),
    ]
    web_routes = []
    if state.args.no_ui:
        open_routes.append(Route("/", ollama.root))
    else:
        web = WebPages(state)
        open_routes += web.documents()
        web_routes += [
            Route("/ui/settings", web.settings),
            Route("/ui/board", BoardPages(state).events),
        ]
    model_routes = [
        Route("/v1/models", pages.models),
        Route("/v1/models/{name:path}", pages.model),
        Route("/tokenizer_info", pages.tokenizer_info),
    ]
    stored = StoredResponses(state)
    key_routes = [
        *model_routes,
        *web_routes,
        Route("/api/tags", ollama.tags),
        Route("/api/ps", ollama.ps),
        *refused_routes(),
        Route("/v1/responses/{id}", stored.get, methods=["GET"]),
        Route("/v1/responses/{id}", stored.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/input_items", stored.input_items, methods=["GET"]),
    ]
    posts: list[tuple[str, ASGIApp]] = [
        ("/v1/chat/completions", ChatCompletions(state)),
        ("/v1/completions", Completions(state)),
        ("/v1/responses", Responses(state)),
        ("/v1/responses/input_tokens", CountInputTokens(state)),
        ("/api/chat", OllamaChat(state)),
        ("/api/generate", OllamaGenerate(state)),
        ("/api/show", OllamaShow(state)),
        ("/api/embed", OllamaEmbed(state)),
        ("/api/embeddings", OllamaEmbeddings(state)),
        ("/v1/embeddings", Embeddings(state)),
        ("/v1/score", Score(state)),
        ("/tokenize", Tokenize(state)),
        ("/detokenize", Detokenize(state)),
    ]
    keys = state.args.api_key
    for route in key_routes:
        header = KEY_HEADER if route.path.startswith("/v1/models") else None
        route.app = Protected(route.app, keys, header=header)
    post_routes = [
        Route(path, Protected(endpoint, keys), methods=["POST"]) for path, endpoint in posts
    ]
    post_routes += [
        Route(path, Protected(endpoint, keys, header=KEY_HEADER), methods=["POST"])
        for path, endpoint in (
            ("/v1/messages", Messages(state)),
            ("/v1/messages/count_tokens", CountTokens(state)),
        )
    ]
    admin_routes = _admin_routes(state)
    app = _App([*open_routes, *key_routes, *post_routes, *admin_routes], state)
    app.router.redirect_slashes = False
    return app
