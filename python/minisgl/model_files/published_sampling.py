"""The sampling parameters that a model's makers publish with it: the defaults of its requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from minisgl.model_files.gguf_metadata import read_gguf_metadata
from minisgl.model_files.side_files import read_json
from minisgl.sampling_params import ParameterError, SamplingParams

logger = logging.getLogger(__name__)

# Fields of SamplingParams, which generation_config.json calls the same, and a .gguf file's keys.
_GGUF_KEYS: Mapping[str, str] = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def published_sampling(path: str) -> dict[str, float]:
    """Fields of SamplingParams with what the model at `path` publishes for them: a folder in its
    generation_config.json, a .gguf file in its metadata. The log says in one line what was found,
    and warns of values that SamplingParams can't have. ModelError for a damaged file.
    """
    if Path(path).is_dir():
        source = "generation_config.json"
        try:
            published = read_json(Path(path) / source)
        except FileNotFoundError:
            return {}
    else:
        source = "the .gguf file"
        metadata = read_gguf_metadata(Path(path))
        published = {name: metadata.get(key) for name, key in _GGUF_KEYS.items()}
    values = {}
    for name in _GGUF_KEYS:
        value = published.get(name)
        if name == "top_k" and isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            continue
        try:
            SamplingParams(**{name: value})
        except ParameterError as error:
            logger.warning("the %s of %s is left out: %s", name, source, error)
        else:
            values[name] = value
    if values:
        shown = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        logger.info(
            "defaults of requests' sampling, by %s: %s (--generation-config none leaves them out)",
            source,
            shown,
        )
    return values
