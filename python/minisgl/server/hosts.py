"""Hosts: by which names the server may be addressed.

A page on the web can have its own name resolved to this machine (DNS rebinding), and its scripts
are then of the server's origin. So a server that whoever is on this machine may use, without a key,
answers only to names that no page on the web can have.
"""

from __future__ import annotations

import ipaddress

from starlette.types import Scope

from minisgl.config.http import ANY_HOST, HttpSettings
from minisgl.server.errors import ApiError

_SHOWN = 100  # characters of a name


class Hosts:
    """The rule of --allowed-hosts. Without it every name is allowed, but where the server listens
    on the loopback interface and needs no key.
    """

    def __init__(self, settings: HttpSettings) -> None:
        names = settings.allowed_hosts
        open_to_pages = (
            settings.uds is None and not settings.api_key and _is_loopback(settings.host)
        )
        self._checks = bool(names) or open_to_pages
        self._any = ANY_HOST in names
        self._names = frozenset(name.lower() for name in (*names, settings.host))

    def check(self, scope: Scope) -> None:
        """Raises ApiError 403 for a request by another name. One without a name is no browser's."""
        if self._any or not self._checks:
            return
        for key, value in scope["headers"]:
            if key == b"host" and not self._allows(name := _name(value)):
                raise ApiError(
                    403,
                    f"This server isn't to be addressed as '{name[:_SHOWN]}'. Its operator can "
                    "allow the name (--allowed-hosts), or set a key (--api-key).",
                    code="host_not_allowed",
                )

    def _allows(self, name: str) -> bool:
        # No page on the web has an address of this machine or a name without a dot: neither is
        # resolved by a stranger.
        return (
            name in self._names
            or "." not in name
            or name.endswith(".localhost")
            or _address(name) is not None
        )


def _name(value: bytes) -> str:
    """The name or the address in a Host header, without port, brackets and a last dot."""
    text = value.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback
