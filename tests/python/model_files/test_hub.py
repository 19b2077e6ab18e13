"""Repositories through Hugging Face's own library and a small hub of our own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python.model_files.small_hub import SmallHub, serving_hub

NOWHERE = "http://127.0.0.1:9"
GGUF_FILES = {
    "README.md": b"x",
    "x-Q4_K_M.gguf": b"GGUF" + bytes(50),
    "q8/x-Q8_0-00001-of-00002.gguf": b"GGUF" + bytes(60),
    "q8/x-Q8_0-00002-of-00002.gguf": b"GGUF" + bytes(61),
}
FILES = {"config.json": b"{}", "model.safetensors": bytes(100), "model.bin": b"unwanted"}
CHUNK = 10 * 2**20  # bytes that the library reads at once
PROGRAM = """
import sys
from minisgl.model_files.files import ModelError
from minisgl.model_files.source import resolve_model
revision = sys.argv[1] or None
for model in sys.argv[2:]:
    try:
        files = resolve_model(model, revision=revision, show_progress=False)
        print(files.path.rpartition("snapshots/")[2], files.name)
    except ModelError as error:
        print(error)
"""


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    with serving_hub() as hub:
        yield hub


def resolve(
    cache: Path, endpoint: str, *models: str, revision: str = "", offline: bool = False
) -> list[str]:
    environment = {
        **os.environ,
        "HF_HOME": str(cache),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": str(int(offline)),
    }
    command = [sys.executable, "-c", PROGRAM, revision, *models]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def unreachable(what: str, endpoint: str) -> str:
    return (
        f"{what} is neither a folder here nor all in the Hugging Face cache, and {endpoint} can't "
        "be reached: download it elsewhere and name its folder with --model."
    )


def test_gguf_files_of_a_repository(hub: SmallHub, tmp_path: Path) -> None:
    commit = hub.push("org/name", GGUF_FILES, "main")
    first = f"{commit}/q8/x-Q8_0-00001-of-00002.gguf x-Q8_0"
    several = "org/name has several .gguf files: name one of org/name:Q8_0, org/name:Q4_K_M."
    models = {
        "org/name:Q4_K_M": f"{commit}/x-Q4_K_M.gguf x-Q4_K_M",
        "hf.co/org/name:q8_0": first,
        "org/name/q8/x-Q8_0-00002-of-00002.gguf": first,
        "org/name": several,
        "org/name:Q2_K": several.replace("several .gguf files", "no .gguf file called 'Q2_K'"),
        "org/name/y.gguf": "org/name has no file 'y.gguf', or none that can be reached now.",
    }
    assert resolve(tmp_path, hub.address, *models) == list(models.values())
    # What lies in the cache is served without a network, and is what can be chosen.
    assert resolve(tmp_path, hub.address, *models, offline=True) == list(models.values())
    assert resolve(tmp_path, NOWHERE, *models) == list(models.values())


def test_revisions_of_a_repository(hub: SmallHub, tmp_path: Path) -> None:
    one = hub.push("org/m", FILES, "v1", "main")
    two = hub.push("org/m", {**FILES, "model.safetensors": bytes(200)}, "v2", "main")

    def found(revision: str, endpoint: str = hub.address) -> str:
        (line,) = resolve(tmp_path, endpoint, "org/m", revision=revision)
        return line

    assert found("") == f"{two} org/m"  # main
    assert not (tmp_path / "hub" / "models--org--m" / "snapshots" / two / "model.bin").exists()
    assert found("v1") == f"{one} org/m"
    assert found(two) == f"{two} org/m"
    assert sorted(hub.sent) == ["config.json:0"] + ["model.safetensors:0"] * 2  # each file once
    assert found("v9") == "org/m has no revision 'v9'."
    assert found("0" * 40) == f"org/m has no revision '{'0' * 40}'."
    assert resolve(tmp_path, hub.address, "org/none", revision="v1") == [
        "there is no model 'org/none': no folder here has that name, and Hugging Face has no such "
        "repository that you may read."
    ]
    # Without a network: what is there by its name then, and what isn't.
    assert found("v1", NOWHERE) == f"{one} org/m"
    assert found(one, NOWHERE) == f"{one} org/m"
    assert found("v9", NOWHERE) == unreachable("org/m at revision 'v9'", NOWHERE)


def test_a_download_that_breaks_off(hub: SmallHub, tmp_path: Path) -> None:
    weights = os.urandom(CHUNK + 5)
    files = {**FILES, "model.safetensors": weights}
    commit = hub.push("org/m", files, "v1")

    # It goes on where it broke off, and gives up where nothing more comes.
    hub.broken_at, hub.breaks = CHUNK + 2, 1
    assert resolve(tmp_path / "one", hub.address, "org/m", revision="v1") == [f"{commit} org/m"]
    assert hub.sent[-2:] == ["model.safetensors:0", f"model.safetensors:{CHUNK}"]
    snapshot = tmp_path / "one" / "hub" / "models--org--m" / "snapshots" / commit
    assert (snapshot / "model.safetensors").read_bytes() == weights

    hub.broken_at, hub.breaks = 100, 10**6
    (sentence,) = resolve(tmp_path / "two", hub.address, "org/m", revision="v1")
    assert sentence.startswith(
        f"org/m at revision 'v1' can't be downloaded from {hub.address}: peer closed connection"
    )
    assert sentence.endswith("; whole files that have come are kept for another try.")
    # Without a network, what is there of the model isn't taken for it.
    assert resolve(tmp_path / "two", NOWHERE, "org/m", revision="v1") == [
        unreachable("org/m at revision 'v1'", NOWHERE)
    ]
    hub.breaks = 0
    hub.sent.clear()
    assert resolve(tmp_path / "two", hub.address, "org/m", revision="v1") == [f"{commit} org/m"]
    assert hub.sent == ["model.safetensors:0"]


def test_progress_is_told_instead_of_shown(hub: SmallHub, tmp_path: Path) -> None:
    sizes = {"config.json": 2, "a.safetensors": 3 * CHUNK, "b.safetensors": 5}
    hub.push("org/m", {name: bytes(size) for name, size in sizes.items()}, "main")
    program = (
        "from minisgl.model_files.source import resolve_model\n"
        "resolve_model('org/m', on_progress=lambda *report: print(*report))"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub.address}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    reports = [tuple(map(int, line.split())) for line in run.stdout.splitlines()]
    assert reports
    for done, total in reports:
        assert 0 <= done <= total <= sum(sizes.values())


def test_a_hub_that_is_ill(hub: SmallHub, tmp_path: Path) -> None:
    hub.push("org/m", FILES, "main")
    hub.ill = True
    assert (
        resolve(tmp_path, hub.address, "org/m", "org/m:Q4_0")
        == ["Hugging Face answered 500 for org/m; try again later."] * 2
    )
