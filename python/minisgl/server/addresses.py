"""Where a server listens: all addresses of a name at one port, or a Unix socket; with TLS or
without.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING

from minisgl.config import key_fault
from minisgl.ipc.socket_files import SocketFile, SocketFileError, remove_stale

if TYPE_CHECKING:
    from minisgl.config import ServerArgs

BACKLOG = 2048
MAX_CONNECTIONS = 2**16
MAX_KEY_CHARACTERS = 2**20  # of --api-key-file
ATTEMPTS = 20  # at a port that is free at all addresses of a name


class ListenError(Exception):
    """The address can't be had. The message is one sentence for the one who started the server."""


class Listener:
    """Bound sockets, which don't listen yet. close() also removes a Unix socket's file."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        *,
        path: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.max_connections = MAX_CONNECTIONS
        self.sockets = list(sockets)
        self.tls = tls
        self._file = SocketFile(path) if path is not None else None

    @classmethod
    def bind(cls, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> Listener:
        """All addresses that `host` has on this machine, at one port. Raises ListenError."""
        return cls(_bind_all(host, port), tls=tls)

    @classmethod
    def bind_unix(cls, path: str, *, tls: ssl.SSLContext | None = None) -> Listener:
        """A Unix socket, with the permissions that the umask leaves. It takes the place of one that
        nobody listens on any more. Raises ListenError.
        """
        return cls([_bind_unix(path)], path=path, tls=tls)

    @property
    def port(self) -> int:
        """Of all its addresses; 0 for a Unix socket."""
        name = self.sockets[0].getsockname()
        return 0 if isinstance(name, str) else int(name[1])

    @property
    def urls(self) -> str:
        """Where clients find it."""
        scheme = "http" if self.tls is None else "https"
        return ", ".join(_url(scheme, listener) for listener in self.sockets)

    def listen(self) -> None:
        """From now on clients may connect and the port is nobody else's. Raises ListenError."""
        for listener in self.sockets:
            try:
                listener.listen(BACKLOG)
            except OSError as error:
                host, port = listener.getsockname()[:2]
                raise _listen_error(host, port, error) from error

    def close(self) -> None:
        """Ends it, whether it listens or not."""
        for listener in self.sockets:
            listener.close()
        if self._file is not None:
            self._file.remove()


def open_listener(args: ServerArgs, room: int) -> Listener:
    """What the options ask for; the limit of open files has `room` for so many connections. Raises
    ListenError.
    """
    if args.max_connections > room:
        raise ListenError(
            f"--max-connections {args.max_connections} is more than the {room} that the limit of "
            "open files leaves (ulimit -n)"
        )
    tls = None
    if args.ssl_certfile is not None and args.ssl_keyfile is not None:
        tls = _load_tls(args.ssl_certfile, args.ssl_keyfile)
    if args.uds is not None:
        listener = Listener.bind_unix(args.uds, tls=tls)
    else:
        listener = Listener.bind(args.host, args.port, tls=tls)
    listener.max_connections = args.max_connections or room
    return listener


def read_api_keys(args: ServerArgs) -> tuple[str, ...]:
    """All keys, those of --api-key first. Raises ListenError where the file has none or can't be
    read.
    """
    if args.api_key_file is None:
        return args.api_key
    try:
        with open(args.api_key_file, encoding="utf-8") as file:
            text = file.read(MAX_KEY_CHARACTERS)
    except (OSError, UnicodeDecodeError) as error:
        raise ListenError(
            f"--api-key-file {args.api_key_file!r} can't be read: {_reason(error)}"
        ) from error
    if len(text) == MAX_KEY_CHARACTERS:
        raise ListenError(
            f"--api-key-file {args.api_key_file!r} is too large: it has {MAX_KEY_CHARACTERS} "
            "characters or more"
        )
    keys = tuple(key for line in text.splitlines() if (key := line.strip()))
    if not keys:
        raise ListenError(f"--api-key-file {args.api_key_file!r} has no key: one per line")
    for number, key in enumerate(keys, 1):
        if fault := key_fault(key):
            raise ListenError(f"--api-key-file {args.api_key_file!r}: key {number} {fault}")
    return (*args.api_key, *keys)


def _bind_all(host: str, port: int) -> list[socket.socket]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(
            f"--host {host!r} is neither an address nor a known name: {error}"
        ) from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for attempt in range(ATTEMPTS):
        try:
            return _bind_each(host, port, addresses)
        except ListenError:
            # The system's choice for one address may be taken at another.
            if port != 0 or len(addresses) == 1 or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError


def _bind_each(
    host: str, port: int, addresses: Sequence[tuple[int, tuple[object, ...]]]
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    for family, address in addresses:
        try:
            bound.append(_bind(family, address, port, alone=len(addresses) == 1))
            port = bound[0].getsockname()[1]
        except OSError as error:
            # A name may have an address of a kind that this machine doesn't, such as ::1.
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                missing = error
                continue
            for listener in bound:
                listener.close()
            raise _listen_error(host, port, error) from error
    if not bound:
        assert missing is not None
        raise _listen_error(host, port, missing) from missing
    return bound


def _bind(family: int, address: tuple[object, ...], port: int, *, alone: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6 and not alone:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address[0], port, *address[2:]))
    except OSError:
        listener.close()
        raise
    return listener


def _bind_unix(path: str) -> socket.socket:
    try:
        remove_stale("--uds", path)
    except SocketFileError as error:
        raise ListenError(str(error)) from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
    except OSError as error:
        listener.close()
        raise ListenError(f"minisgl can't listen on --uds {path!r}: {_reason(error)}") from error
    return listener


def _load_tls(certfile: str, keyfile: str) -> ssl.SSLContext:
    """Raises ListenError."""
    for flag, file in (("--ssl-certfile", certfile), ("--ssl-keyfile", keyfile)):
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise ListenError(f"{flag} {file!r} can't be read: {_reason(error)}") from error
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    asked = []

    def refuse_password() -> str:
        asked.append(True)  # and the terminal is not
        return ""

    try:
        context.load_cert_chain(certfile, keyfile, refuse_password)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None)
        if asked:
            sentence = f"--ssl-keyfile {keyfile!r} is encrypted: a key without a password is needed"
        elif reason == "KEY_VALUES_MISMATCH":
            sentence = f"--ssl-keyfile {keyfile!r} isn't the key of --ssl-certfile {certfile!r}"
        else:
            sentence = (
                f"--ssl-certfile {certfile!r} and --ssl-keyfile {keyfile!r} are no certificate and "
                f"private key in PEM form ({reason or _reason(error)})"
            )
        raise ListenError(sentence) from error
    return context


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    if error.errno == errno.EADDRINUSE:
        return ListenError(
            f"port {port} of {host} is taken by another program: end that one or choose another "
            "with --port"
        )
    if error.errno == errno.EACCES:
        return ListenError(f"this user may not listen on port {port}: choose another with --port")
    if error.errno == errno.EADDRNOTAVAIL:
        return ListenError(f"{host} is not an address of this machine: choose another with --host")
    return ListenError(f"minisgl can't listen on port {port} of {host}: {error.strerror}")


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _url(scheme: str, listener: socket.socket) -> str:
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
