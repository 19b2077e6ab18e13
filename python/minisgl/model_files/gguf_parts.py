"""A GGUF model that is published in parts: name-00001-of-00003.gguf and so on, in one folder."""

from __future__ import annotations

import re
from pathlib import Path

from minisgl.model_files.files import ModelError

_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})(\.gguf)", re.IGNORECASE)


def part_names(name: str) -> list[str]:
    """The names of all parts of the model that the file of this name is a part of, in order; the
    name alone when it is none.
    """
    match = _PART.fullmatch(name)
    if not match or not 1 <= int(match[2]) <= int(match[3]):
        return [name]
    stem, _, count, suffix = match.groups()
    return [f"{stem}-{number:05}-of-{count}{suffix}" for number in range(1, int(count) + 1)]


def model_name(name: str) -> str:
    """What the file's model is called: its name without the numbers of a part and the ending."""
    match = _PART.fullmatch(name)
    return match[1] if match else Path(name).stem


def first_part(path: Path) -> Path:
    """The first of the model's files, which holds the metadata. ModelError names a missing one."""
    names = part_names(path.name)
    missing = [name for name in names if not path.with_name(name).is_file()]
    if len(names) > 1 and missing:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise ModelError(
            f"{path} is one of {len(names)} files of a model, and {missing[0]}{more} missing."
        )
    return path.with_name(names[0])
