"""What has to be equal in two models for one to take the other's place, and the program that finds
a model and describes it: to download one and to load its tokenizer holds up nobody who serves.
"""

from __future__ import annotations

import os
import signal
import sys

import msgspec

from minisgl.children import die_with_parent
from minisgl.model_files.files import ModelError
from minisgl.model_files.progress import Report
from minisgl.model_files.sizes import ModelSizes, model_sizes
from minisgl.model_files.source import resolve_model
from minisgl.tokenizer.load import load_tokenizer
from minisgl.tokenizer.template_source import read_chat_template
from minisgl.tokenizer.tokenizer import Tokenizer


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the program is told, as JSON in its argument."""

    model: str | None
    revision: str | None
    weights: bool  # whether they are needed
    chat_template: str | None  # the file of one that stands in for the model's own
    parent: int  # the process that waits for it


class Downloading(msgspec.Struct, frozen=True, tag="downloading"):
    """How far a download has come."""

    done: int
    total: int


class Description(msgspec.Struct, frozen=True, tag="description"):
    """A model on this host. Where there is none, `error` says why in one sentence."""

    path: str = ""
    commit: str = ""  # as in ModelFiles
    digests: dict[str, str] = {}  # the tokenizer's
    sizes: ModelSizes = ModelSizes(None, None)
    error: str = ""


def describe(path: str, tokenizer: Tokenizer, commit: str = "") -> Description:
    """The model at a path, with the tokenizer that was loaded from there. ModelError."""
    return Description(path, commit, tokenizer.digests(), model_sizes(path))


def look_for(wanted: Wanted, on_progress: Report | None = None) -> Description:
    """Finds or downloads a model and describes it."""
    try:
        files = resolve_model(
            wanted.model,
            revision=wanted.revision,
            weights=wanted.weights,
            show_progress=False,
            on_progress=on_progress,
        )
        template = wanted.chat_template and read_chat_template(wanted.chat_template)
        tokenizer = load_tokenizer(files.path, chat_template=template or None)
        return describe(files.path, tokenizer, files.commit)
    except ModelError as error:
        return Description(error=str(error))


def main() -> None:
    """The program: lines of JSON on its standard output, of which the last is a Description."""
    wanted = msgspec.json.decode(sys.argv[1], type=Wanted)
    die_with_parent(signal.SIGKILL)
    if os.getppid() == wanted.parent:
        say(look_for(wanted, lambda done, total: say(Downloading(done, total))))


def say(word: Downloading | Description) -> None:
    """One line for whoever started the program."""
    sys.stdout.buffer.write(msgspec.json.encode(word) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
