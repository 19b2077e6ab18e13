"""The pages for people: built files of web/, under the policy that keeps them to this server."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from minisgl.server.errors import ApiError
from minisgl.server.http import json_response
from minisgl.server.ollama_pages import OllamaPages
from minisgl.server.page_settings import page_settings
from minisgl.server.state import ServerState

BUILT = Path(__file__).parent / "web"  # what web/build.mjs writes
# Nothing but this server's own files, and no script or style within a document.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
FOREVER = "public, max-age=31536000, immutable"  # a name has the hash of what it names
ASK_AGAIN = "no-cache"


@dataclass
class _File:
    """A file in memory, and what it is compressed once a browser asks for that."""

    content: bytes
    media_type: str
    caching: str

    def __post_init__(self) -> None:
        self.tag = f'"{hashlib.sha256(self.content).hexdigest()[:20]}"'
        self._compressed: bytes | None = None

    async def compressed(self) -> bytes:
        """As gzip, made beside the loop."""
        if self._compressed is None:
            self._compressed = await asyncio.to_thread(gzip.compress, self.content, 9, mtime=0)
        return self._compressed


class WebPages:
    """The methods are Starlette endpoints."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._ollama = OllamaPages(state)
        self._documents = {path.stem: _read(path, ASK_AGAIN) for path in BUILT.glob("*.html")}
        self._static = {
            path.name: _read(path, FOREVER)
            for path in (BUILT / "static").iterdir()
            if path.suffix in TYPES
        }

    def documents(self) -> list[Route]:
        """Those that need no key: they ask for it themselves."""
        routes = [Route("/", self.root), Route("/static/{name}", self.static)]
        others = sorted(set(self._documents) - {"chat"})
        return routes + [Route(f"/{name}", self.document) for name in others]

    async def root(self, request: Request) -> Response:
        """GET /: the chat for a browser, and for clients what Ollama says there."""
        if "text/html" in request.headers.get("accept", ""):
            answer = await self._page(request, "chat")
        else:
            answer = await self._ollama.root(request)
        answer.headers["vary"] = "Accept, Accept-Encoding"
        return answer

    async def document(self, request: Request) -> Response:
        """GET /dashboard and the like."""
        return await self._page(request, request.scope["path"][1:])

    async def static(self, request: Request) -> Response:
        """GET /static/{name}. ApiError 404."""
        name = request.path_params["name"]
        if name not in self._static:
            raise ApiError(404, "There is no such file. Load the page again.", code="unknown_url")
        return await _send(request, self._static[name])

    async def settings(self, request: Request) -> Response:
        """GET /ui/settings: what the pages ask at their start."""
        return json_response(page_settings(self._state))

    async def _page(self, request: Request, name: str) -> Response:
        """A document. Its links are relative, so that they hold behind --root-path: a slash at the
        end of its address has to be as they expect it.
        """
        root, raw = self._state.args.root_path, request.scope["raw_path"].decode("ascii")
        if root and raw == root:
            return RedirectResponse(root + "/")
        if raw.endswith("/") and name != "chat":
            return RedirectResponse(raw.rstrip("/"))
        return await _send(request, self._documents[name])


async def _send(request: Request, file: _File) -> Response:
    headers = {**HEADERS, "cache-control": file.caching, "etag": file.tag}
    headers["vary"] = "Accept-Encoding"
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        content = await file.compressed()
        headers["content-encoding"] = "gzip"
    return Response(content, headers={**headers, "content-type": file.media_type})


def _read(path: Path, caching: str) -> _File:
    return _File(path.read_bytes(), TYPES[path.suffix], caching)
