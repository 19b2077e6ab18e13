"""resolve_model: from what the user named (or nothing) to a model's files on this machine."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from minisgl.environment import default_cache_dir
from minisgl.model_files.default_model import default_model
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.gguf_parts import first_part, model_name, part_names
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

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HUB_FILE = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/([\w./-]+\.gguf)")


def resolve_model(
    model: str | None,
    *,
    show_progress: bool = True,
    revision: str | None = None,
    cache_dir: Path | None = None,
    weights: bool = True,
) -> ModelFiles:
    """Finds or downloads `model`: a folder, a .gguf file, a Hugging Face id (org/name), or one
    .gguf file of a repository (org/name/file.gguf); None is the default model. Of a GGUF model in
    several files, any of them names it.

    `cache_dir` holds the default model (None: config.default_cache_dir()); Hugging Face keeps its
    own. `revision` is for Hugging Face ids only. Without `weights` (--load-format dummy) a folder
    needs none, and none are downloaded for an id.
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
    try:
        path = Path(model).expanduser()
        if model and (path.is_dir() or path.is_file()):
            _refuse_revision(revision, f"the model at {model!r}")
            return _folder(path, weights=weights) if path.is_dir() else _gguf_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, no home folder
        raise ModelError(f"there is no model at {model[:200]!r}: {error}.") from error
    if hub_file := _HUB_FILE.fullmatch(model):
        return _hub_file(hub_file[1], hub_file[2], revision)
    if _HUB_ID.fullmatch(model) and not model.endswith(".gguf"):
        return _hub_snapshot(model, revision, show_progress, weights)
    raise ModelError(
        f"there is no model at {model!r}: no such folder or .gguf file, and it is not a Hugging "
        "Face id like org/name."
    )


def _refuse_revision(revision: str | None, model: str) -> None:
    if revision is not None:
        raise ModelError(
            f"--revision {revision} is for a Hugging Face id, but {model} has no revisions: leave "
            "it out."
        )


def _folder(path: Path, name: str | None = None, *, weights: bool = True) -> ModelFiles:
    """A folder with config.json and every weight file that its index names, or one .gguf file."""
    files = ModelFiles(str(path), name or path.resolve().name)
    shown = name or str(path)
    if not (path / "config.json").is_file():
        gguf_files = sorted(path.glob("*.gguf"))
        if gguf_files and {file.name for file in gguf_files} <= set(part_names(gguf_files[0].name)):
            return _gguf_file(gguf_files[0])
        if gguf_files:
            names = ", ".join(file.name for file in gguf_files[:5])
            raise ModelError(f"{shown} has several .gguf files ({names}): name one of them.")
        raise ModelError(f"{shown} has no config.json: it is not a model.")
    if weights:
        _check_weights(path, shown)
    return files


def _check_weights(path: Path, shown: str) -> None:
    """Sees to it that every weight file of a folder is there, and a file. As in transformers,
    model.safetensors counts before an index, and without both any files of that kind.
    """
    index = path / "model.safetensors.index.json"
    try:
        whole = path / "model.safetensors"
        names = [whole.name] if os.path.lexists(whole) else _indexed_files(index)
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
        raise ModelError(f"{shown} lacks {missing[0]}{more}, which {index.name} names.")


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


def _beginning(path: Path) -> bytes:
    """The first bytes of a weight file. FileNotFoundError; else ModelError, where it can't be read
    or something else lies there.
    """
    try:
        with open_file(path) as file:
            beginning = file.read(200)
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


def _hub_snapshot(
    repo: str, revision: str | None, show_progress: bool, weights: bool
) -> ModelFiles:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    hide = not show_progress and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[name for name in _WANTED_FILES if weights or "safetensors" not in name],
            ignore_patterns=list(_UNWANTED_FILES),
        )
    except Exception as error:  # the library lets its HTTP client's exceptions through
        raise ModelError(_hub_error(repo, revision, error)) from error
    finally:
        if hide:
            enable_progress_bars()
    return _folder(Path(path), repo, weights=weights)


def _hub_file(repo: str, file: str, revision: str | None) -> ModelFiles:
    from huggingface_hub import hf_hub_download

    try:
        folder, _, name = file.rpartition("/")
        for part in part_names(name):
            path = hf_hub_download(repo, f"{folder}/{part}".lstrip("/"), revision=revision)
    except Exception as error:
        raise ModelError(_hub_error(repo, revision, error, file)) from error
    return _gguf_file(Path(path))


def _hub_error(repo: str, revision: str | None, error: Exception, file: str = "") -> str:
    from huggingface_hub import errors

    match error:
        case errors.GatedRepoError():
            return (
                f"{repo} is gated: accept its terms on its Hugging Face page and log in "
                "(`hf auth login`, or HF_TOKEN)."
            )
        case errors.RevisionNotFoundError():
            return f"{repo} has no revision {revision!r}."
        case errors.RepositoryNotFoundError():
            return (
                f"there is no model {repo!r}: no folder here has that name, and Hugging Face has "
                "no such repository that you may read."
            )
        case errors.EntryNotFoundError() if not isinstance(error, errors.LocalEntryNotFoundError):
            return f"{repo} has no file {file!r}." if file else f"{repo} lacks a file of a model."
        case OSError(errno=errno.ENOSPC):
            return f"there is no space left on the disk for {repo}."
        case errors.HFValidationError():
            return f"{repo!r} is not a Hugging Face id."
        case errors.HfHubHTTPError() if error.response is not None:
            return (
                f"Hugging Face answered {error.response.status_code} for {repo}; try again later."
            )
    return (
        f"{repo} is neither a folder here nor in the Hugging Face cache, and Hugging Face can't be "
        "reached: download it elsewhere and name its folder with --model."
    )
