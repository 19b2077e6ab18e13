"""A small hub: as much of Hugging Face's as its own library asks for to find and download a model,
with the faults that a network has.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FileContents = Mapping[str, bytes]


def commit_of(files: FileContents) -> str:
    """A name of 40 digits for these files."""
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha1(content).digest())
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """What a repository has that is made of a model's folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@dataclass
class SmallHub:
    """Repositories, each with its commits and the names of some, and what goes wrong at a file."""

    address: str = ""
    commits: dict[str, dict[str, FileContents]] = field(default_factory=dict)
    names: dict[str, dict[str, str]] = field(default_factory=dict)  # branches and tags
    broken_at: int = 0  # bytes of an answer after which its connection ends; 0: none does
    breaks: int = 0  # how many more do
    ill: bool = False  # it answers 500 to everything
    held: threading.Event | None = None  # files wait for it
    sent: list[str] = field(default_factory=list)  # paths of files, and from where on

    def push(self, repo: str, files: FileContents, *names: str) -> str:
        """A new commit, which these names mean from now on."""
        commit = commit_of(files)
        self.commits.setdefault(repo, {})[commit] = files
        self.names.setdefault(repo, {}).update(dict.fromkeys(names, commit))
        return commit

    def find(self, repo: str, revision: str) -> str | None:
        """The commit that a name or a commit means."""
        if revision in self.commits[repo]:
            return revision
        return self.names[repo].get(revision)


class Answers(BaseHTTPRequestHandler):
    """One connection."""

    hub: SmallHub  # of the class that serving_hub() makes

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        path, _, _ = self.path.partition("?")
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if self.hub.ill:
            return self.refuse("", 500)
        match = listing or file
        if match is None or match[1] not in self.hub.commits:
            return self.refuse("RepoNotFound")
        repo, revision = match[1], (match[3] if listing else match[2]) or "main"
        commit = self.hub.find(repo, revision)
        if commit is None:
            return self.refuse("RevisionNotFound")
        files = self.hub.commits[repo][commit]
        if listing and match[2] == "tree":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "b" * 40}
                for name, content in files.items()
            ]
            return self.answer(json.dumps(entries).encode(), commit)
        if listing:
            siblings = [{"rfilename": name} for name in files]
            about = {"id": repo, "sha": commit, "private": False, "siblings": siblings}
            return self.answer(json.dumps(about).encode(), commit)
        assert file
        if file[3] not in files:
            return self.refuse("EntryNotFound")
        self.give(file[3], files[file[3]], commit)

    def do_GET(self) -> None:
        self.do_HEAD()

    def refuse(self, code: str, status: int = 404) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content: bytes, commit: str, status: int = 200, tag: str = "") -> None:
        self.send_response(status)
        self.send_header("ETag", f'"{tag or hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def give(self, name: str, content: bytes, commit: str) -> None:
        """A file, from where the client has it."""
        hub, tag = self.hub, hashlib.sha1(content).hexdigest()
        if self.command == "HEAD":
            return self.answer(content, commit)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked else 0
        hub.sent.append(f"{name}:{begin}")
        if hub.held is not None:
            hub.held.wait()
        if hub.breaks and len(content) - begin > hub.broken_at:
            hub.breaks -= 1
            self.send_response(206 if asked else 200)
            self.send_header("ETag", f'"{tag}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            self.wfile.write(content[begin : begin + hub.broken_at])
            return
        self.answer(content[begin:], commit, 206 if asked else 200, tag)


@contextlib.contextmanager
def serving_hub() -> Iterator[SmallHub]:
    """A hub without repositories, at an address of its own."""
    hub = SmallHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answers", (Answers,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
