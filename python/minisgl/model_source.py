"""Finding a model's files, as a library: `resolve_model` and the error that it raises."""

from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.source import resolve_model

__all__ = ["ModelError", "ModelFiles", "resolve_model"]
