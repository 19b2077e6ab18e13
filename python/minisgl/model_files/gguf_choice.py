"""Which of several .gguf files is meant: by the quantisation in its name (org/name:Q4_K_M), where a
model in parts counts as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath

from minisgl.model_files.files import ModelError
from minisgl.model_files.gguf_parts import model_name

MAX_SHOWN = 40  # models in a message

# The types that llama.cpp writes and others write into names: Q4_K_M, IQ2_XXS, UD-Q4_K_XL, BF16.
_TYPE = re.compile(
    r"(?:^|[-._/])((?:UD-)?(?:I?Q\d\w*|TQ\d\w*|MXFP4\w*|B?F16|FP16|F32|FP32))(?=[-./]|$)",
    re.IGNORECASE,
)
# Files that are no language model: an encoder of pictures, what a quantisation was weighed by.
_OTHERS = ("mmproj", "imatrix")


@dataclass(frozen=True)
class GgufModel:
    """A model of a folder or repository: its files in order, one unless it comes in parts."""

    name: str  # the path of its file, without the ending and the number of a part
    files: tuple[str, ...]

    @property
    def quantisation(self) -> str:
        """What the name says of the weights' types; "" where it says nothing."""
        found = _TYPE.findall(self.name)
        return found[-1] if found else ""

    def is_called(self, tag: str) -> bool:
        """Whether a tag means this model: its quantisation, or the name of a file of it."""
        tag = tag.lower()
        files = {name.lower() for file in self.files for name in (file, PurePath(file).name)}
        words = rf"(?:^|[-._/]){re.escape(tag)}(?:$|[-./])"
        return tag in files or re.search(words, self.name.lower()) is not None


def gguf_models(files: Iterable[str]) -> list[GgufModel]:
    """The models among the paths of a folder or repository, by name."""
    models: dict[str, list[str]] = {}
    for file in sorted(files):
        path = PurePath(file)
        if path.suffix.lower() == ".gguf" and not any(
            word in path.name.lower() for word in _OTHERS
        ):
            models.setdefault(str(path.with_name(model_name(path.name))), []).append(file)
    return [GgufModel(name, tuple(parts)) for name, parts in models.items()]


def choose_gguf(models: list[GgufModel], where: str, tag: str, *, tags: bool) -> GgufModel:
    """The only one of `models`, or the only one that `tag` means. ModelError says what to type:
    with `tags` the quantisation where that tells them apart, else the path, after `where`.
    """
    meant = [model for model in models if not tag or model.is_called(tag)]
    if len(meant) == 1:
        return meant[0]
    if not models:
        raise ModelError(f"{where} has no .gguf file.")
    kinds = [model.quantisation.lower() for model in models]
    shown = [
        f"{where}:{model.quantisation}"
        if tags and model.quantisation and kinds.count(model.quantisation.lower()) == 1
        else f"{where}/{model.files[0]}"
        for model in (meant or models)
    ]
    more = f" and {len(shown) - MAX_SHOWN} more" if len(shown) > MAX_SHOWN else ""
    what = f"no .gguf file called {tag!r}" if tag and not meant else "several .gguf files"
    raise ModelError(f"{where} has {what}: name one of {', '.join(shown[:MAX_SHOWN])}{more}.")
