"""The grammar process: checks and compiles the forms that clients ask for, one after the other. It
has a limit of memory, and a parent that kills it when it takes too long; see grammars.py.
"""

from __future__ import annotations

from minisgl.text.grammar_compiler import compile_grammar, make_tokenizer
from minisgl.text.grammar_messages import (
    MAX_SENTENCE,
    MEMORY_LIMIT,
    Compiled,
    FromGrammarProcess,
    Refused,
    decode_source,
    frame,
)
from minisgl.text.grammar_text import GrammarError
from minisgl.text.limited_child import serve


def main() -> None:
    """Answers until the parent closes its end."""
    tokenizer = make_tokenizer()

    def answer(data: bytes) -> FromGrammarProcess:
        try:
            return Compiled(compile_grammar(decode_source(data), tokenizer))
        except GrammarError as error:
            return Refused("source", str(error)[:MAX_SENTENCE])
        except MemoryError:
            return Refused("memory")

    serve(MEMORY_LIMIT, lambda data: frame(answer(data)))


if __name__ == "__main__":
    main()
