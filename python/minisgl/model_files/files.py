"""A model's files on this machine, and the error of a model that can't be had or used."""

from __future__ import annotations

from dataclasses import dataclass


class ModelError(Exception):
    """The model can't be had or used. The message is one sentence for the person who named it."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine."""

    path: str  # folder with config.json and *.safetensors, or a .gguf file
    name: str  # what /v1/models says
