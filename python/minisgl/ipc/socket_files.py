"""Unix sockets as files: what is there before somebody listens, and what is left afterwards."""

from __future__ import annotations

import contextlib
import os
import socket
import stat


class SocketFileError(Exception):
    """A path can't be listened on. The sentence, with the flag, is meant for the screen."""


class SocketFile:
    """The file of a socket that was bound just now."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Removes it, unless another one is there by now."""
        if self._identity is not None and _identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def remove_stale(flag: str, path: str) -> None:
    """Removes a socket that nobody listens on. Raises SocketFileError where something else is
    there.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            raise SocketFileError(
                f"{flag} {path!r} is a symbolic link to {os.readlink(path)!r}, which does not "
                "exist: remove the link or choose another path"
            ) from None
        return
    except OSError as error:
        raise _unusable(flag, path, error) from error
    if not stat.S_ISSOCK(mode):
        raise SocketFileError(f"{flag} {path!r} is there already, and is no socket")
    with contextlib.suppress(FileNotFoundError):  # its server ends at this moment
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
                return
            except OSError as error:
                raise _unusable(flag, path, error) from error
        raise SocketFileError(
            f"another program listens on {flag} {path!r}: end that one or choose another path"
        )


def _unusable(flag: str, path: str, error: OSError) -> SocketFileError:
    return SocketFileError(f"minisgl can't listen on {flag} {path!r}: {error.strerror or error}")


def _identity(path: str) -> tuple[int, int] | None:
    """Which file is there."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
