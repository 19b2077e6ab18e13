"""GGUF files of a repository, through Hugging Face's own library and a small hub of our own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {
    "README.md": b"x",
    "x-Q4_K_M.gguf": b"GGUF" + bytes(50),
    "q8/x-Q8_0-00001-of-00002.gguf": b"GGUF" + bytes(60),
    "q8/x-Q8_0-00002-of-00002.gguf": b"GGUF" + bytes(61),
}
PROGRAM = """
import sys
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model
for model in sys.argv[1:]:
    try:
        files = resolve_model(model, show_progress=False)
        print(files.path.rpartition("snapshots/")[2].partition("/")[2], files.name)
    except ModelError as error:
        print(error)
"""


class Hub(BaseHTTPRequestHandler):
    """One repository, org/name, with FILES."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        path, _, _ = self.path.partition("?")
        if path.startswith("/api/models/org/name/tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "b" * 40}
                for name, content in FILES.items()
            ]
            self.answer(json.dumps(entries).encode())
        elif path.startswith("/api/models/org/name"):
            siblings = [{"rfilename": name} for name in FILES]
            about = {"id": "org/name", "sha": COMMIT, "private": False, "siblings": siblings}
            self.answer(json.dumps(about).encode())
        else:
            self.answer(FILES.get(path.partition(f"/resolve/{COMMIT}/")[2]))

    def do_GET(self) -> None:
        self.do_HEAD()

    def answer(self, content: bytes | None) -> None:
        self.send_response(404 if content is None else 200)
        content = content or b""
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def resolve(cache: Path, endpoint: str, *models: str, offline: bool = False) -> list[str]:
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    command = [sys.executable, "-c", PROGRAM, *models]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def test_gguf_files_of_a_repository(hub: str, tmp_path: Path) -> None:
    first = "q8/x-Q8_0-00001-of-00002.gguf x-Q8_0"
    several = "org/name has several .gguf files: name one of org/name:Q8_0, org/name:Q4_K_M."
    models = {
        "org/name:Q4_K_M": "x-Q4_K_M.gguf x-Q4_K_M",
        "hf.co/org/name:q8_0": first,
        "org/name/q8/x-Q8_0-00002-of-00002.gguf": first,
        "org/name": several,
        "org/name:Q2_K": several.replace("several .gguf files", "no .gguf file called 'Q2_K'"),
        "org/name/y.gguf": "org/name has no file 'y.gguf', or none that can be reached now.",
    }
    assert resolve(tmp_path, hub, *models) == list(models.values())
    # What lies in the cache is served without a network, and is what can be chosen.
    assert resolve(tmp_path, hub, *models, offline=True) == list(models.values())
    assert resolve(tmp_path, "http://127.0.0.1:9", *models) == list(models.values())
