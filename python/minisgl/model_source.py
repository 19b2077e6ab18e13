"""resolve_model under the name that 0.1.0 had for its module, for programs that import it so."""

from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model

__all__ = ["ModelError", "resolve_model"]
