"""Ray, an engine for clusters: see docs/RAY.md. What is here runs in processes of Ray's, or of its
own; `minisgl-serve` imports none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minisgl.ray.serve_llm import MinisglServer

__all__ = ["MinisglServer"]


def __getattr__(name: str) -> Any:
    """MinisglServer, which needs the whole server: the other programs here don't load it."""
    if name == "MinisglServer":
        from minisgl.ray.serve_llm import MinisglServer

        return MinisglServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
