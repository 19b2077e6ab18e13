"""What the form of an answer is described by, and the messages between the server and the grammar
process: msgpack, each behind its length.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from minisgl.text.limited_child import with_length

MAX_SOURCE_BYTES = 2**18  # of a schema, an expression, choices or a grammar, in UTF-8
MAX_GRAMMAR_BYTES = 4 * MAX_SOURCE_BYTES  # that is made of one
MEMORY_LIMIT = 512 * 2**20  # of the grammar process, in bytes of address space
MAX_FRAME_BYTES = MAX_GRAMMAR_BYTES + 4096  # from the grammar process
MAX_SENTENCE = 1000  # characters


class GrammarSource(msgspec.Struct, frozen=True, tag="source", omit_defaults=True):
    """What a grammar is made of; the message that asks for it. Answered by Compiled or Refused."""

    # "json": a JSON schema; "regex"; "choice": a JSON list of texts; "grammar": Lark, GBNF or EBNF;
    # "answer": the JSON text of an AnswerForm; "engine": a grammar as SamplingParams.grammar has
    # it, which stays as it is.
    kind: Literal["json", "regex", "choice", "grammar", "answer", "engine"]
    text: str
    compact: bool = False  # JSON without white space
    whitespace_pattern: str | None = None  # an expression for JSON's white space at one place
    closed: bool = False  # objects have no other properties than those that the schema lists
    # Processor time that it may take, else it is given up at little cost; 0: as much as it takes.
    seconds: Annotated[float, Meta(ge=0)] = 0.0

    @property
    def max_bytes(self) -> int:
        """How long `text` may be in UTF-8."""
        return MAX_GRAMMAR_BYTES if self.kind == "engine" else MAX_SOURCE_BYTES


class Compiled(msgspec.Struct, frozen=True, tag="compiled"):
    """The grammar, as SamplingParams.grammar has it."""

    grammar: Annotated[str, Meta(max_length=MAX_GRAMMAR_BYTES)]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Why there is no grammar, in a sentence without a full stop. After "memory" the process is of
    no more use; "seconds": it was given up.
    """

    kind: Literal["source", "memory", "seconds"]
    message: Annotated[str, Meta(max_length=MAX_SENTENCE)] = ""


FromGrammarProcess = Compiled | Refused

_encoder = msgspec.msgpack.Encoder()
_source: msgspec.msgpack.Decoder[GrammarSource] = msgspec.msgpack.Decoder(GrammarSource)
_answer: msgspec.msgpack.Decoder[FromGrammarProcess] = msgspec.msgpack.Decoder(FromGrammarProcess)


def frame(message: GrammarSource | FromGrammarProcess) -> bytes:
    """A message with its length. UnicodeEncodeError for what is no Unicode text."""
    return with_length(_encoder.encode(message))


def decode_source(data: bytes) -> GrammarSource:
    """Raises msgspec.DecodeError for anything that isn't a GrammarSource message."""
    return _source.decode(data)


def decode_answer(data: bytes) -> FromGrammarProcess:
    """Raises msgspec.DecodeError for anything that isn't a message of the grammar process."""
    return _answer.decode(data)
