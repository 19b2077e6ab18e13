"""A model's files on this machine, and the error of a model that can't be had or used."""

from __future__ import annotations

from dataclasses import dataclass


class ModelError(Exception):
    """The model can't be had or used. The message is one sentence for the person who named it."""


@dataclass(frozen=True)
class ModelFiles:
    """A model on this machine. ModelError where its path or its name is not UTF-8."""

    path: str  # folder with config.json and *.safetensors, or a .gguf file
    name: str  # what /v1/models says
    commit: str = ""  # that a revision of a Hugging Face id means

    def __post_init__(self) -> None:
        for what, text in (("path", self.path), ("name", self.name)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ModelError(f"the {what} of a model must be UTF-8, got {text!a}.") from error
