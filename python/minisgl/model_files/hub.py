"""Repositories of Hugging Face, through its own library: their files, and why they can't be had."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from minisgl.environment import default_cache_dir
from minisgl.model_files.files import ModelError
from minisgl.model_files.progress import Progress, reporting_bars

MAX_REASON = 300  # characters of what the library says


def list_files(repo: str, revision: str | None) -> list[str]:
    """The paths of a repository's files; without a network, of those that lie in the cache.
    ModelError.
    """
    _refuse_homeless(repo)
    from huggingface_hub import model_info, snapshot_download

    try:
        return [file.rfilename for file in model_info(repo, revision=revision).siblings or ()]
    except Exception as error:  # the library lets its HTTP client's exceptions through
        nothing = ["-"]  # no file has to be there for the folder
        try:
            folder = Path(
                snapshot_download(
                    repo, revision=revision, allow_patterns=nothing, local_files_only=True
                )
            )
        except Exception:
            raise ModelError(_reason(repo, revision, error)) from error
        return [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]


def download(
    repo: str,
    revision: str | None,
    progress: Progress,
    wanted: Sequence[str],
    unwanted: Sequence[str] = (),
) -> Path:
    """The folder of a repository in the cache, with what it has of the wanted files; its name is
    the commit's. ModelError.
    """
    _refuse_homeless(repo)
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    report = progress.report
    hide = not (progress.shown and report is None) and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        path = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            tqdm_class=None if report is None else reporting_bars(report),
        )
    except Exception as error:
        raise ModelError(_reason(repo, revision, error)) from error
    finally:
        if hide:
            enable_progress_bars()
    return Path(path)


def _refuse_homeless(model: str) -> None:
    """Without a home Hugging Face's library would make a folder of the name ~ here."""
    named = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
    if default_cache_dir() is None and not any(os.environ.get(name) for name in named):
        raise ModelError(
            f"there is no folder here of the name {model!r}, and no home folder to keep a model of "
            "Hugging Face in: set HOME or HF_HOME."
        )


def _reason(repo: str, revision: str | None, error: BaseException) -> str:
    """One sentence about what the library says."""
    from huggingface_hub import constants, errors

    named = repo if revision is None else f"{repo} at revision {revision!r}"
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
            return f"{repo} lacks a file of a model."
        case OSError(errno=errno.ENOSPC):
            return f"there is no space left on the disk for {repo}."
        case errors.HFValidationError():
            return f"{repo!r} is not a Hugging Face id."
        case errors.HfHubHTTPError() if error.response is not None:
            return (
                f"Hugging Face answered {error.response.status_code} for {named}; try again later."
            )
        case errors.LocalEntryNotFoundError(__cause__=errors.HfHubHTTPError() as answer):
            return _reason(repo, revision, answer)
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            return (
                f"{named} is neither a folder here nor all in the Hugging Face cache, and "
                f"{constants.ENDPOINT} can't be reached: download it elsewhere and name its folder "
                "with --model."
            )
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"{named} can't be downloaded from {constants.ENDPOINT}: {said[:MAX_REASON].rstrip('.')}; "
        "whole files that have come are kept for another try."
    )
