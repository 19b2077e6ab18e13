"""What may be set of the server's door: addresses, keys, and what clients may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minisgl.config.option import DAY, OptionError, key_fault, option

_ROOT_PATH = re.compile(r"(/[^/?#\s]+)+")
_HOST = re.compile(r"[^/?#:@*,\s]+")
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")

ANY_HOST = "*"


@dataclass(frozen=True)
class HttpSettings:
    """A part of ServerArgs, which is what makes and checks it."""

    host: str = option(
        "127.0.0.1", "address to listen on; 0.0.0.0 for every interface", group="HTTP"
    )
    port: int = option(
        8000,
        "port to listen on; 0 takes any free one",
        group="HTTP",
        bounds=(0, 65535),
        metavar="PORT",
    )
    uds: str | None = option(
        None,
        "Unix socket to listen on, in place of --host and --port",
        group="HTTP",
        metavar="PATH",
    )
    ssl_keyfile: str | None = option(
        None, "private key (PEM); with --ssl-certfile: HTTPS", group="HTTP", metavar="FILE"
    )
    ssl_certfile: str | None = option(
        None, "certificate, and those that lead to it (PEM)", group="HTTP", metavar="FILE"
    )
    root_path: str = option(
        "",
        "prefix of all paths that a proxy in front of the server leaves there",
        group="HTTP",
        metavar="PATH",
    )
    allowed_origins: tuple[str, ...] = option(
        (),
        "origins of pages whose scripts may use the server (CORS), such as https://example.org; "
        "* for all; none by default",
        group="HTTP",
        metavar="ORIGIN",
    )
    allowed_hosts: tuple[str, ...] = option(
        (),
        "names by which clients may address the server (Host), beside addresses, names without a "
        "dot and *.localhost; * for all. By default all, but those alone where it listens on "
        "loopback without an API key, as a web page may have its name resolved to this machine",
        group="HTTP",
        metavar="HOST",
    )
    api_key: tuple[str, ...] = option(
        (),
        "keys of which clients must send one (better in the environment or a file)",
        group="HTTP",
        metavar="KEY",
        empty_is_none=False,
        secret=True,
    )
    api_key_file: str | None = option(
        None, "file with further keys, one per line", group="HTTP", metavar="FILE"
    )
    no_ui: bool = option(False, "no pages for people at /", group="HTTP")
    cache_per_key: bool = option(
        False,
        "share computed prefixes only among requests with the same API key",
        group="HTTP",
    )
    max_connections: int = option(
        0,
        "most connections of clients; one more ends one that has no request, or is answered with "
        "503; 0: as many as the limit of open files allows",
        group="HTTP",
        bounds=(0, 2**20),
    )
    strict_requests: bool = option(
        False,
        "refuse requests with fields that neither OpenAI's nor vLLM's API has, in place of "
        "ignoring them",
        group="HTTP",
    )
    max_body_bytes: int = option(
        8 * 2**20,
        "largest body of one request",
        group="HTTP",
        bounds=(1024, 2**40),
        metavar="BYTES",
    )
    max_all_bodies_bytes: int = option(
        512 * 2**20,
        "memory for all request bodies that are arriving or wait to be tokenized",
        group="HTTP",
        bounds=(1024, 2**44),
        metavar="BYTES",
    )
    answer_memory_bytes: int = option(
        64 * 2**20,
        "memory for the token ids of answers, which are used again where a conversation has the "
        "answer's text; 0: all of its text is tokenized anew",
        group="HTTP",
        bounds=(0, 2**40),
        metavar="BYTES",
    )
    response_store_bytes: int = option(
        64 * 2**20,
        "memory for the responses of /v1/responses that later requests may refer to; 0: none are "
        "kept",
        group="HTTP",
        bounds=(0, 2**40),
        metavar="BYTES",
    )
    body_timeout: float = option(
        30.0,
        "time for a client to send a request's head, and again for its body",
        group="HTTP",
        bounds=(0.1, DAY),
    )

    def _check_http(self) -> None:
        if not self.host:
            raise OptionError("host", "must not be empty; 0.0.0.0 listens on every interface")
        for fault in map(key_fault, self.api_key):
            if fault:
                raise OptionError("api_key", fault)
        if self.cache_per_key and not self.api_key and self.api_key_file is None:
            raise OptionError("cache_per_key", "needs --api-key or --api-key-file, too")
        for given, missing in (
            ("ssl_keyfile", "ssl_certfile"),
            ("ssl_certfile", "ssl_keyfile"),
        ):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                raise OptionError(given, f"needs --{missing.replace('_', '-')}, too")
        if self.root_path and not _ROOT_PATH.fullmatch(self.root_path):
            raise OptionError(
                "root_path",
                f"must be a path such as /model without / at its end, got {self.root_path!r}",
            )
        for name in self.allowed_hosts:
            if name != ANY_HOST and not _HOST.fullmatch(name):
                raise OptionError(
                    "allowed_hosts", f"must be * or names such as example.org, got {name!r}"
                )
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                raise OptionError(
                    "allowed_origins",
                    f"must be * or origins such as https://example.org, got {origin!r}",
                )
