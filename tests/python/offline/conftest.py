"""The shell talks to the same pretending engine as the tests of LLM."""

from tests.python.llm.conftest import model, native

__all__ = ["model", "native"]
