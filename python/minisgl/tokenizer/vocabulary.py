"""`python -m minisgl.tokenizer.vocabulary PATH`: a model's tokens for grammars, on stdout. The
program of a process of its own, as loading a tokenizer holds up all threads of the one that does.
"""

from __future__ import annotations

import sys
from array import array

import msgspec

from minisgl.model_files.files import ModelError
from minisgl.tokenizer.load import load_tokenizer


class Vocabulary(msgspec.Struct, frozen=True):
    """A model's tokens as grammars see them (Tokenizer.grammar_tokens), packed."""

    lengths: bytes  # of each token, 32-bit integers
    tokens: bytes  # of all tokens, one after the other
    end_token_ids: list[int]  # those that the tokenizer's files name
    merges: bytes  # Tokenizer.merges(), three 32-bit integers each


def read_vocabulary(path: str) -> Vocabulary:
    """That of a model folder or a .gguf file. ModelError."""
    tokenizer = load_tokenizer(path)
    tokens = tokenizer.grammar_tokens()
    lengths = array("I", map(len, tokens))
    merges = array("i", [token_id for merge in tokenizer.merges() for token_id in merge])
    return Vocabulary(
        lengths.tobytes(), b"".join(tokens), tokenizer.eos_token_ids, merges.tobytes()
    )


def main(path: str) -> int:
    """Writes it as msgpack. Status 0, or 1 with a sentence on stderr."""
    try:
        vocabulary = read_vocabulary(path)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(vocabulary))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
