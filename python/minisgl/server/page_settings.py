"""What the pages for people ask at their start: what is served, and how requests may be sampled."""

from __future__ import annotations

from typing import Any

from minisgl import sampling_params as limits
from minisgl.sampling_params import SamplingParams
from minisgl.server.state import ServerState
from minisgl.version import __version__

# The least and the largest value of what a person may set; null: there is none.
_RANGES: dict[str, tuple[float, float | None]] = {
    "temperature": (0, limits.MAX_TEMPERATURE),
    "top_p": (0, 1),
    "top_k": (-1, None),
    "min_p": (0, 1),
    "repetition_penalty": (0, limits.MAX_REPETITION_PENALTY),
    "presence_penalty": (-limits.MAX_PENALTY, limits.MAX_PENALTY),
    "frequency_penalty": (-limits.MAX_PENALTY, limits.MAX_PENALTY),
}


def page_settings(state: ServerState) -> dict[str, Any]:
    """Of the model as it is served now: a request that says nothing gets these defaults."""
    usual = SamplingParams()
    info = state.info()
    sampling = {
        name: {
            "default": state.sampling_defaults.get(name, getattr(usual, name)),
            "least": least,
            "most": most,
        }
        for name, (least, most) in _RANGES.items()
    }
    return {
        "version": __version__,
        "models": state.model_names,
        "max_model_len": info and info.max_model_len,
        "sampling": sampling,
        "max_logprobs": limits.MAX_LOGPROBS,
        "operators": state.operators,
    }
