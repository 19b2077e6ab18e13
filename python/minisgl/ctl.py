"""minisgl-ctl: what an operator does with the replicas of a running server, in a terminal."""

from __future__ import annotations

import argparse
import http.client
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

KEY_VARIABLE = "MINISGL_ADMIN_API_KEY"
URL_VARIABLE = "MINISGL_URL"
DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # without a byte; a change reports far more often
MAX_BODY_BYTES = 2**20
COLUMNS = ("replica", "state", "requests", "waiting tokens", "restarts", "place", "model")


class CtlError(Exception):
    """Nothing was done, or it isn't known how it went on. The sentence is for the screen."""


@dataclass(frozen=True)
class Server:
    """Where a server's admin pages are."""

    url: str
    key: str

    def ask(
        self, method: str, path: str, body: Mapping[str, str] | None = None
    ) -> http.client.HTTPResponse:
        """The answer to a request, where it is a success. Raises CtlError."""
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CtlError(f"--url must be http://HOST:PORT or https://..., got {self.url!r}")
        make = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        try:
            connection = make(parts.hostname, parts.port, timeout=CONNECT_SECONDS)
            connection.connect()
            connection.sock.settimeout(ANSWER_SECONDS)
            headers = {"authorization": f"Bearer {self.key}"}
            content = None
            if body is not None:
                content = msgspec.json.encode(body)
                headers["content-type"] = "application/json"
            connection.request(method, parts.path.rstrip("/") + path, content, headers)
            answer = connection.getresponse()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise CtlError(f"no server answers at {self.url}: {error}") from error
        if answer.status == 404 and path == "/admin/replicas":
            raise CtlError(
                f"{self.url} has no admin pages: the server was started without --admin-api-key"
            )
        if answer.status >= 300:
            raise CtlError(f"the server refuses it ({answer.status}): {_reason(answer)}")
        return answer


def _reason(answer: http.client.HTTPResponse) -> str:
    body = answer.read(MAX_BODY_BYTES)
    try:
        message: object = msgspec.json.decode(body)["error"]["message"]
    except (msgspec.DecodeError, LookupError, TypeError):
        message = body.decode(errors="replace").strip() or answer.reason
    return str(message)[:2000]


def events_of(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of a change, as they come. Raises CtlError where they break off."""
    try:
        while line := answer.readline(MAX_BODY_BYTES):
            if line.startswith(b"data:") and line != b"data: [DONE]\n":
                yield dict(msgspec.json.decode(line.removeprefix(b"data:")))
    except (OSError, http.client.HTTPException) as error:
        raise CtlError(f"the connection was lost: {error}; the change goes on there") from error
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise CtlError(f"the server says what this release doesn't know: {error}") from error


def describe(event: Mapping[str, Any]) -> str:
    """One line of progress."""
    details = [
        str(value) if name in ("phase", "place", "reason", "model") else f"{name} {value}"
        for name, value in event.items()
        if name not in ("replica", "state") and value not in ("", None)
    ]
    more = f" ({', '.join(details)})" if details else ""
    who = f"replica {event['replica']}" if "replica" in event else "all replicas"
    return f"{who}: {event.get('state', '?')}{more}"


def follow(answer: http.client.HTTPResponse, end: str) -> int:
    """Prints how a change gets on. Returns the exit status: 0 where it came about, which is where
    its last state is `end`.
    """
    state = ""
    for event in events_of(answer):
        print(describe(event), flush=True)
        state = str(event.get("state", ""))
    if state not in (end, "failed", ""):
        raise CtlError(f"the server ended before the change did (it was at: {state})")
    return 0 if state == end else 1


def show(server: Server) -> int:
    """Prints a table of all replicas."""
    try:
        body = msgspec.json.decode(server.ask("GET", "/admin/replicas").read())
        rows = [COLUMNS]
        for one in body["replicas"]:
            state = f"{one['state']} ({one['phase']})" if one["phase"] else one["state"]
            counts = (one["num_live"], one["waiting_tokens"], one["num_restarts"])
            model = f"{one['model']} ({one['revision']})" if one["revision"] else one["model"]
            rows.append((str(one["number"]), state, *map(str, counts), one["place"], model))
    except (OSError, http.client.HTTPException, msgspec.DecodeError, LookupError, TypeError) as bad:
        raise CtlError(f"the server says what this release doesn't know: {bad!r}") from bad
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise argparse.ArgumentTypeError(f"expected a replica's number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 86400, got {text!r}")
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """The parser behind minisgl-ctl."""
    parser = argparse.ArgumentParser(
        prog="minisgl-ctl",
        description="See and change the replicas of a running minisgl-serve.",
        epilog="The server needs --admin-api-key. The exit status is 0 where a change came about, "
        "1 where it was refused or failed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--url",
        default=os.environ.get(URL_VARIABLE) or DEFAULT_URL,
        help=f"the server (default: {URL_VARIABLE}, or {DEFAULT_URL})",
    )
    parser.add_argument(
        "--admin-api-key",
        metavar="KEY",
        default=os.environ.get(KEY_VARIABLE, ""),
        help=f"its admin key (better in the environment: {KEY_VARIABLE})",
    )
    things = parser.add_subparsers(required=True, metavar="THING")
    replicas = things.add_parser("replicas", help="the replicas of the server")
    actions = replicas.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="show them all")
    actions.add_parser("add", help="one more, where there is room")
    for action, help in (("remove", "one less"), ("restart", "replace a replica's process")):
        parsed = actions.add_parser(action, help=help)
        parsed.add_argument("number", type=_number, metavar="NUMBER", help="which one")
        parsed.add_argument(
            "--drain",
            type=_seconds,
            default=0.0,
            metavar="SECONDS",
            help="time that its requests have to end there (default 0); then they go on at others",
        )
    parsed = actions.add_parser(
        "replace", help="replace all, one after the other, by some with another model revision"
    )
    parsed.add_argument(
        "--model", help="a folder, .gguf file or Hugging Face id (default: the server's own)"
    )
    parsed.add_argument("--revision", help="a branch, tag or commit of a Hugging Face id")
    parsed.add_argument(
        "--drain",
        type=_seconds,
        default=600.0,
        metavar="SECONDS",
        help="time that requests have to end where no other replica can go on with them "
        "(default 600); then they end with an error",
    )
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """The command. Returns its exit status."""
    args = build_parser().parse_args(argv)
    if not args.admin_api_key:
        raise CtlError(f"no key: set {KEY_VARIABLE}, or give --admin-api-key")
    server = Server(args.url, args.admin_api_key)
    if args.action == "list":
        return show(server)
    if args.action == "add":
        return follow(server.ask("POST", "/admin/replicas"), "ready")
    drain = f"?drain={args.drain:g}"
    if args.action == "replace":
        wish = {"model": args.model, "revision": args.revision}
        named = {name: value for name, value in wish.items() if value is not None}
        return follow(server.ask("POST", f"/admin/replicas/replace{drain}", named), "replaced")
    one = f"/admin/replicas/{args.number}"
    if args.action == "remove":
        return follow(server.ask("DELETE", one + drain), "removed")
    return follow(server.ask("POST", f"{one}/restart{drain}"), "ready")


def main() -> int:
    """The console script."""
    try:
        return run()
    except CtlError as error:
        print(f"minisgl-ctl: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("minisgl-ctl: what was begun goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read along has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
