"""resolve_model: from what the user named (or nothing) to a model's files on this machine."""

from __future__ import annotations

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from minisgl.environment import default_cache_dir
from minisgl.model_files import hub
from minisgl.model_files.default_model import default_model
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.gguf_choice import choose_gguf, gguf_models
from minisgl.model_files.gguf_parts import first_part, model_name, part_names
from minisgl.model_files.progress import Progress, Report
from minisgl.model_files.side_files import INDEX_BYTES, open_file, read_json, stands_in

# What is taken from a Hugging Face repository; other formats and training state stay there.
_WANTED_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
)
_UNWANTED_FILES = ("*/*", "consolidated*")  # copies of the weights in other layouts

_GGUF = ".[gG][gG][uU][fF]"  # of a file's name, in a pattern

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w./-]+\.(?i:gguf))")
_HUB_ADDRESS = re.compile(r"^(https://)?(hf\.co|huggingface\.co)/")
_TAGGED = re.compile(r"([^:]+):([\w./-]+)")  # org/name:Q4_K_M, or a folder's path


def resolve_model(
    model: str | None,
    *,
    show_progress: bool = True,
    on_progress: Report | None = None,
    revision: str | None = None,
    cache_dir: Path | None = None,
    weights: bool = True,
) -> ModelFiles:
    """Finds or downloads `model`: a folder, a .gguf file, a Hugging Face id (org/name), or one
    .gguf file of a repository (org/name/file.gguf, or org/name:Q4_K_M by its quantisation); None is
    the default model. Of a GGUF model in several files, any of them names it.

    `cache_dir` holds the default model (None: config.default_cache_dir()); Hugging Face keeps its
    own. `revision` is for Hugging Face ids only. Without `weights` (--load-format dummy) a folder
    needs none, and none are downloaded for an id. `on_progress` hears of downloads from Hugging
    Face instead of the screen, on any thread.
    ModelError, with one sentence, when there is no such model, a file is missing, or it can't be
    downloaded.
    """
    if model is None:
        _refuse_revision(revision, "the default model")
        cache_dir = cache_dir or default_cache_dir()
        if cache_dir is None:
            raise ModelError(
                "there is no home folder to keep the default model in: set HOME or XDG_CACHE_HOME, "
                "or name a model with --model."
            )
        return default_model(cache_dir, show_progress=show_progress)
    progress = Progress(show_progress, on_progress)
    try:
        path = Path(model).expanduser()
        if model and (path.is_dir() or path.is_file()):
            _refuse_revision(revision, f"the model at {model!r}")
            return _folder(path, weights=weights) if path.is_dir() else _gguf_file(path)
        tagged = _TAGGED.fullmatch(model)
        if tagged and (folder := Path(tagged[1]).expanduser()).is_dir():
            _refuse_revision(revision, f"the model at {tagged[1]!r}")
            return _gguf_of_folder(folder, tagged[2])
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no home folder
        raise ModelError(f"there is no model at {model[:200]!r}: {error}.") from error
    model = _HUB_ADDRESS.sub("", model)
    if hub_file := _HUB_FILE.fullmatch(model):
        inside, slash, name = hub_file[2].rpartition("/")
        files = [inside + slash + part for part in part_names(name)]
        return _hub_gguf(hub_file[1], files, revision, progress)
    if (tagged := _TAGGED.fullmatch(model)) and _HUB_ID.fullmatch(tagged[1]):
        return _tagged_gguf(tagged[1], tagged[2], revision, progress)
    if _HUB_ID.fullmatch(model) and not model.lower().endswith(".gguf"):
        return _hub_snapshot(model, revision, progress, weights)
    raise ModelError(
        f"there is no model at {model!r}: no such folder or .gguf file, and it is not a Hugging "
        "Face id like org/name or org/name:Q4_K_M."
    )


def _refuse_revision(revision: str | None, model: str) -> None:
    if revision is not None:
        raise ModelError(
            f"--revision {revision} is for a Hugging Face id, but {model} has no revisions: leave "
            "it out."
        )


def _folder(path: Path, name: str | None = None, *, weights: bool = True) -> ModelFiles:
    """A folder with config.json and every weight file that its index names, or one .gguf model."""
    files = ModelFiles(str(path), name or path.resolve().name)
    shown = name or str(path)
    if not any(path.glob("*.safetensors*")) and any(path.glob(f"*{_GGUF}")):
        return _gguf_of_folder(path, "")
    try:
        _beginning(path / "config.json")
    except FileNotFoundError:
        if (config := path / "config.json").is_symlink():
            raise ModelError(
                f"{config} is a symbolic link to {os.readlink(config)!r}, which does not exist."
            ) from None
        raise ModelError(f"{shown} has no config.json: it is not a model.") from None
    if weights:
        _check_weights(path, shown)
    return files


def _check_weights(path: Path, shown: str) -> None:
    """Sees to it that every weight file of a folder is there, and a file. As in transformers,
    model.safetensors counts before an index, and without both any files of that kind.
    """
    index = path / "model.safetensors.index.json"
    whole = path / "model.safetensors"
    where = ""
    try:
        if os.path.lexists(whole):
            names = [whole.name]
        else:
            names, where = _indexed_files(index), f", which {index.name} names"
    except FileNotFoundError:
        names = [file.name for file in path.glob("*.safetensors")]
    if not names:
        raise ModelError(f"{shown} has no *.safetensors weights.")
    missing = []
    for name in names:
        try:
            _beginning(path / name)
        except FileNotFoundError:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelError(f"{shown} lacks {missing[0]}{more}{where}.")


def _indexed_files(index: Path) -> list[str]:
    weight_map = read_json(index, INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelError(f"{index} is not an index of safetensors files: it has no weight_map.")
    files = set()
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise ModelError(f"{index} names {file!r}, which is not a file beside it.")
        files.add(file)
    return sorted(files)


def _gguf_of_folder(path: Path, tag: str) -> ModelFiles:
    """The folder's only .gguf model, or the one that the tag means."""
    found = [*path.glob(f"*{_GGUF}"), *path.glob(f"*/*{_GGUF}")]
    files = [str(file.relative_to(path)) for file in found]
    return _gguf_file(path / choose_gguf(gguf_models(files), str(path), tag, tags=False).files[0])


def _beginning(path: Path) -> bytes:
    """The first bytes of a model's file. FileNotFoundError; else ModelError, where it can't be read
    or something else lies there.
    """
    try:
        with open_file(path) as file:
            beginning = file.read(200) or b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelError(f"{path} can't be read: {error.strerror}.") from error
    if other := stands_in(beginning):
        raise ModelError(f"{path} is {other}.")
    return beginning


def _gguf_file(path: Path) -> ModelFiles:
    beginning = _beginning(path)
    if not beginning.startswith(b"GGUF"):
        raise ModelError(
            f"{path} is not a GGUF file: it begins with {beginning[:4]!r}, not b'GGUF'."
        )
    return ModelFiles(str(first_part(path)), model_name(path.name))


def _hub_snapshot(repo: str, revision: str | None, progress: Progress, weights: bool) -> ModelFiles:
    wanted = [name for name in _WANTED_FILES if weights or "safetensors" not in name]
    folder = hub.download(repo, revision, progress, wanted, _UNWANTED_FILES)
    has_config = (folder / "config.json").is_file()
    if not any(folder.glob("*.safetensors*")) and (weights or not has_config):
        models = gguf_models(hub.list_files(repo, revision))
        if models:  # a repository for llama.cpp
            files = choose_gguf(models, repo, "", tags=True).files
            return _hub_gguf(repo, files, revision, progress)
    found = _folder(folder, repo, weights=weights)
    return dataclasses.replace(found, commit=folder.name)


def _tagged_gguf(repo: str, tag: str, revision: str | None, progress: Progress) -> ModelFiles:
    """The .gguf model of a repository that a tag means."""
    models = gguf_models(hub.list_files(repo, revision))
    files = choose_gguf(models, repo, tag, tags=True).files
    return _hub_gguf(repo, files, revision, progress)


def _hub_gguf(
    repo: str, files: Sequence[str], revision: str | None, progress: Progress
) -> ModelFiles:
    """A .gguf model of a repository, with all its files."""
    patterns = [glob.escape(file) for file in files]
    folder = hub.download(repo, revision, progress, patterns)
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"{repo} has no file {file!r}, or none that can be reached now.")
    return dataclasses.replace(_gguf_file(folder / files[0]), commit=folder.name)
