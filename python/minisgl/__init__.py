"""minisgl: an LLM inference server. Public names are loaded when first used, so a submodule's
import stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minisgl.version import __version__

if TYPE_CHECKING:
    from minisgl.config import ServerArgs
    from minisgl.launch import launch_server
    from minisgl.offline.llm import LLM
    from minisgl.sampling_params import (
        PoolingParams,
        SamplingParams,
        StructuredOutputsParams,
    )

__all__ = [
    "LLM",
    "PoolingParams",
    "SamplingParams",
    "ServerArgs",
    "StructuredOutputsParams",
    "__version__",
    "launch_server",
]


def __getattr__(name: str) -> Any:
    homes = {
        "LLM": "minisgl.offline.llm",
        "PoolingParams": "minisgl.sampling_params",
        "SamplingParams": "minisgl.sampling_params",
        "ServerArgs": "minisgl.config",
        "StructuredOutputsParams": "minisgl.sampling_params",
        "launch_server": "minisgl.launch",
    }
    if name not in homes:
        raise AttributeError(f"module 'minisgl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(homes[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
