"""The grammar process: checks and compiles the forms that clients ask for, one after the other. It
has a limit of memory, and a parent that kills it when it takes too long; see grammars.py.

Forms with a limit of processor time are compiled in a copy of the process: one that reaches its
limit ends the copy, and the next form has another one at once.
"""

from __future__ import annotations

import mmap
import os
import signal

from minisgl.children import die_with_parent
from minisgl.text.grammar_compiler import compile_grammar, make_tokenizer
from minisgl.text.grammar_messages import (
    MAX_SENTENCE,
    MEMORY_LIMIT,
    Compiled,
    FromGrammarProcess,
    GrammarSource,
    Refused,
    decode_source,
    frame,
)
from minisgl.text.grammar_text import GrammarError
from minisgl.text.limited_child import serve


def main() -> None:
    """Answers until the parent closes its end."""
    tokenizer = make_tokenizer()
    copies = _Copies()

    def compiled(source: GrammarSource) -> FromGrammarProcess:
        try:
            return Compiled(compile_grammar(source, tokenizer))
        except GrammarError as error:
            return Refused("source", str(error)[:MAX_SENTENCE])
        except MemoryError:
            return Refused("memory")

    def answer(data: bytes) -> bytes:
        source = decode_source(data)
        if not source.seconds:
            return frame(compiled(source))
        if not copies.enter():
            return frame(Refused("seconds"))
        copies.begin(source.seconds)
        made = frame(compiled(source))
        copies.end()
        return made

    serve(MEMORY_LIMIT, answer)


class _Copies:
    """The copy of the process that answers in its place, and that may end at any form."""

    def __init__(self) -> None:
        self._is_copy = False
        self._at_work = mmap.mmap(-1, 1)  # whether the copy is at a form; both see it

    def enter(self) -> bool:
        """Whether this process is the copy, which goes on from here. The other one waits, and
        returns False where the copy has ended at a form: it is the one to answer that.
        """
        if self._is_copy:
            return True
        self._at_work[0] = True
        copy = os.fork()
        if not copy:
            die_with_parent(signal.SIGKILL)
            self._is_copy = True
            return True
        status = os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])
        if not self._at_work[0]:  # nothing is left to answer
            os._exit(0 if status == 0 else 1)
        return False

    def begin(self, seconds: float) -> None:
        """The copy is at a form, and ends when that takes more processor time."""
        self._at_work[0] = True
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def end(self) -> None:
        """It has done it."""
        signal.setitimer(signal.ITIMER_PROF, 0)
        self._at_work[0] = False


if __name__ == "__main__":
    main()
