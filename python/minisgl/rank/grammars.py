"""What the native engine needs for grammars, found when the first request has one: nobody else
waits for it, or pays.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from minisgl.children import child_environment, python_command

if TYPE_CHECKING:
    from minisgl._native import Engine

VOCABULARY_SECONDS = 60.0  # that reading the tokenizer may take

logger = logging.getLogger(__name__)


class GrammarSupport:
    """Brings llguidance and the model's vocabulary to one engine."""

    def __init__(self, engine: Engine, model_path: str) -> None:
        self._engine = engine
        self._model_path = model_path
        self._began = False

    def need(self) -> None:
        """A request with a grammar is about to be submitted. Returns at once; the engine has the
        request wait for what a thread brings.
        """
        if not self._began:
            self._began = True
            threading.Thread(target=self._bring, name="grammars", daemon=True).start()

    def _bring(self) -> None:
        try:
            library = _find_library()
            vocabulary = _read_vocabulary(self._model_path)
            info = self._engine.info
            ends = dict.fromkeys([*info["eos_token_ids"], *vocabulary.end_token_ids])
            self._engine.open_grammars(
                library=library,
                lengths=vocabulary.lengths,
                tokens=vocabulary.tokens,
                ends=[end for end in ends if end < info["vocab_size"]],
                merges=vocabulary.merges,
            )
        except Exception as error:
            logger.warning("grammars can't be served: %s", error)
            self._engine.refuse_grammars(str(error))


class _Vocabulary(msgspec.Struct, frozen=True):
    """As minisgl.tokenizer.vocabulary writes it."""

    lengths: bytes
    tokens: bytes
    end_token_ids: list[int]
    merges: bytes


def _find_library() -> str:
    """The path of llguidance's extension; nothing of it is imported."""
    spec = importlib.util.find_spec("llguidance")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for path in sorted(Path(folder).glob("_lib*.so")):
            return str(path)
    raise FileNotFoundError("llguidance is not installed: pip install llguidance==1.9.1")


def _read_vocabulary(model_path: str) -> _Vocabulary:
    """In a process of its own: loading a tokenizer holds up the threads of the one that does."""
    done = subprocess.run(
        (*python_command("minisgl.tokenizer.vocabulary"), model_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=child_environment(),
        timeout=VOCABULARY_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        reason = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise RuntimeError(f"the model's tokenizer can't be read: {reason}")
    return msgspec.msgpack.decode(done.stdout, type=_Vocabulary)
