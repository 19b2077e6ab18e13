"""resolve_model: folders, .gguf files, Hugging Face ids, and names that are none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from minisgl.model_files.files import ModelError, ModelFiles
from minisgl.model_files.source import resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "some-model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"x")
    return model


def gguf(path: Path) -> Path:
    path.write_bytes(b"GGUF" + bytes(20))
    return path


def refusal(model: str) -> str:
    with pytest.raises(ModelError) as error:
        resolve_model(model)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_a_folder(folder: Path) -> None:
    assert resolve_model(str(folder)) == ModelFiles(str(folder), "some-model")


def test_a_revision_of_what_has_none(folder: Path, tmp_path: Path) -> None:
    for model in (str(folder), str(gguf(tmp_path / "m.gguf")), None):
        with pytest.raises(ModelError, match="--revision main is for a Hugging Face id"):
            resolve_model(model, revision="main")


def test_the_module_of_the_first_version() -> None:
    from minisgl import model_source

    assert model_source.resolve_model is resolve_model
    assert model_source.ModelError is ModelError


def test_a_relative_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert resolve_model(".").name == "some-model"


def test_a_folder_in_the_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model("~/some-model").path == str(folder)


def test_a_gguf_file(tmp_path: Path) -> None:
    path = gguf(tmp_path / "tiny.Q4_0.gguf")
    assert resolve_model(str(path)) == ModelFiles(str(path), "tiny.Q4_0")
    assert resolve_model(str(tmp_path)) == ModelFiles(str(path), "tiny.Q4_0")


def test_files_that_are_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "has no *.safetensors weights" in refusal(str(folder))
    assert resolve_model(str(folder), weights=False).path == str(folder)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model-1.safetensors").write_bytes(b"x")
    assert "lacks model-2.safetensors, which" in refusal(str(folder))
    (folder / "model-1.safetensors").unlink()
    assert "lacks model-1.safetensors and 1 more, which" in refusal(str(folder))
    (folder / "model-1.safetensors").write_bytes(b"x")
    (folder / "model.safetensors").write_bytes(b"x")  # has all, whatever the index says
    assert resolve_model(str(folder)).path == str(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model-2.safetensors").write_bytes(b"x")
    assert resolve_model(str(folder)).path == str(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-1.safetensors").unlink()
    assert resolve_model(str(folder)).path == str(folder)  # one file of another name
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(str(folder))


def test_what_lies_in_the_place_of_config_json(folder: Path) -> None:
    config = folder / "config.json"
    config.unlink()
    os.mkfifo(config)
    assert f"{config} is a named pipe, not a regular file." in refusal(str(folder))
    config.unlink()
    config.symlink_to(config)
    assert f"{config} can't be read: Too many levels of symbolic links." in refusal(str(folder))
    config.unlink()
    config.mkdir()
    assert f"{config} is a folder, not a regular file." in refusal(str(folder))
    config.rmdir()
    config.symlink_to("gone")
    assert f"{config} is a symbolic link to 'gone', which does not exist." in refusal(str(folder))


def test_a_path_that_is_not_utf8(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m\udcff.gguf")
    for named in (path, tmp_path):
        assert "the path of a model must be UTF-8, got '" in refusal(str(named))


def test_the_case_of_a_suffix_does_not_count(tmp_path: Path) -> None:
    path = gguf(tmp_path / "M.GGUF")
    for named in (path, tmp_path, f"{tmp_path}:M"):
        assert resolve_model(str(named)) == ModelFiles(str(path), "M")
    path.unlink()
    parts = [gguf(tmp_path / f"M-0000{i}-of-00002.GGUF") for i in (1, 2)]
    for named in (*parts, tmp_path):
        assert resolve_model(str(named)) == ModelFiles(str(parts[0]), "M")


@pytest.mark.parametrize(
    "index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": "../../etc/passwd"}}',
              '{"weight_map": {"a": 5}}', '{"weight_map": {"a": []}}']
)  # fmt: skip
def test_a_damaged_index(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in refusal(str(folder))


def test_a_gguf_model_in_parts(tmp_path: Path) -> None:
    """Any part and a folder of nothing else name the model; its path is the first part's."""
    parts = [gguf(tmp_path / f"tiny-Q4_K_M-0000{i}-of-00003.gguf") for i in (1, 2, 3)]
    model = ModelFiles(str(parts[0]), "tiny-Q4_K_M")
    for named in (*parts, tmp_path):
        assert resolve_model(str(named)) == model
    parts[1].unlink()
    for named in (parts[0], parts[2], tmp_path):
        assert f"is one of 3 files of a model, and {parts[1].name} is missing" in refusal(
            str(named)
        )
    parts[0].unlink()
    assert f"{parts[0].name} and 1 more are missing" in refusal(str(tmp_path))
    gguf(tmp_path / "other.gguf")
    assert f"{tmp_path}/other.gguf, {parts[2]}." in refusal(str(tmp_path))


def test_names_that_are_like_those_of_parts(tmp_path: Path) -> None:
    for name in ("m-00003-of-00002.gguf", "m-00000-of-00002.gguf", "m-1-of-2.gguf"):
        path = gguf(tmp_path / name)
        assert resolve_model(str(path)).path == str(path)


def test_several_gguf_files(tmp_path: Path) -> None:
    gguf(tmp_path / "a.gguf")
    gguf(tmp_path / "b.gguf")
    assert f"has several .gguf files: name one of {tmp_path}/a.gguf, {tmp_path}/b.gguf." in refusal(
        str(tmp_path)
    )


def test_a_gguf_file_of_a_folder_by_its_quantisation(tmp_path: Path) -> None:
    for name in ("m-Q4_K_M", "m-Q4_K_S", "m-Q8_0", "mmproj-m-f16", "m-IQ4_XS", "m.F16"):
        gguf(tmp_path / f"{name}.gguf")
    (tmp_path / "config.json").write_text("{}")  # some repositories for llama.cpp have one
    meant = {"Q8_0": "m-Q8_0", "q4_k_m": "m-Q4_K_M", "IQ4_XS": "m-IQ4_XS", "f16": "m.F16"}
    for tag, name in {**meant, "m-Q8_0.gguf": "m-Q8_0", "m-Q8_0": "m-Q8_0"}.items():
        files = resolve_model(f"{tmp_path}:{tag}")
        assert files == ModelFiles(str(tmp_path / f"{name}.gguf"), name)
    assert "mmproj" not in refusal(str(tmp_path))
    sentence = refusal(f"{tmp_path}:Q4_K")
    assert (
        f"{tmp_path} has no .gguf file called 'Q4_K': name one of {tmp_path}/m-IQ4_XS" in sentence
    )
    with pytest.raises(ModelError, match="--revision main is for a Hugging Face id"):
        resolve_model(f"{tmp_path}:Q8_0", revision="main")


def test_parts_beside_another_gguf_model(tmp_path: Path) -> None:
    parts = [gguf(tmp_path / f"m-Q8_0-0000{number}-of-00002.gguf") for number in (1, 2)]
    gguf(tmp_path / "m-Q4_0.gguf")
    assert resolve_model(f"{tmp_path}:Q8_0") == ModelFiles(str(parts[0]), "m-Q8_0")
    assert f"{tmp_path}/m-Q4_0.gguf, {parts[0]}." in refusal(str(tmp_path))


def test_a_file_that_is_not_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"PK\x03\x04")
    assert "is not a GGUF file: it begins with b'PK" in refusal(str(path))


@pytest.mark.parametrize(
    "name",
    [
        "/no/such/folder",
        "./none",
        "none",
        "none.gguf",
        "a/b.gguf",
        "a/b/c",
        "~/none",
        "",
        "a b/c",
        "x" * 5000,
        "a\0b",
    ],
)
def test_names_that_are_nothing(name: str) -> None:
    assert "there is no model at" in refusal(name)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Hugging Face's downloads, replaced: `result` is returned or raised, `calls` are noted,
    and `files` are what a repository lists.
    """
    state: dict[str, Any] = {"calls": [], "result": None, "files": []}

    def download(*args: Any, **options: Any) -> Any:
        state["calls"].append((args, options))
        if isinstance(state["result"], Exception):
            raise state["result"]
        return state["result"]

    def info(*args: Any, **options: Any) -> Any:
        if isinstance(state["files"], Exception):
            raise state["files"]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in state["files"]])

    monkeypatch.setattr(huggingface_hub, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return state


def test_a_hub_id(hub: dict[str, Any], folder: Path) -> None:
    hub["result"] = str(folder)
    files = resolve_model("org/name-1.5", revision="main", show_progress=False)
    assert files == ModelFiles(str(folder), "org/name-1.5", folder.name)
    (args, options) = hub["calls"][0]
    assert args == ("org/name-1.5",)
    assert options["revision"] == "main"
    assert "*.safetensors" in options["allow_patterns"]
    resolve_model("org/name-1.5", weights=False)
    (_, options) = hub["calls"][1]
    assert "config.json" in options["allow_patterns"]
    assert not any("safetensors" in pattern for pattern in options["allow_patterns"])


def downloads(hub: dict[str, Any]) -> list[list[str]]:
    """The files of each download so far, which is forgotten."""
    calls = [options["allow_patterns"] for _, options in hub["calls"]]
    hub["calls"].clear()
    return calls


def test_a_gguf_file_on_the_hub(hub: dict[str, Any], tmp_path: Path) -> None:
    gguf(tmp_path / "x.Q8_0.gguf")
    hub["result"] = str(tmp_path)
    assert resolve_model("org/repo/x.Q8_0.gguf", revision="v2").name == "x.Q8_0"
    assert hub["calls"][0][0] == ("org/repo",)
    assert hub["calls"][0][1]["revision"] == "v2"
    assert downloads(hub) == [["x.Q8_0.gguf"]]
    assert refusal("org/repo/y.gguf").startswith("org/repo has no file 'y.gguf'")


def test_a_gguf_file_on_the_hub_by_its_quantisation(hub: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "UD").mkdir()
    hub["result"] = str(tmp_path)
    hub["files"] = ["x-Q4_K_M.gguf", "x-Q8_0.gguf", "UD/x-UD-Q4_K_XL.gguf"]
    for file in hub["files"]:
        gguf(tmp_path / file)
    hub["files"] += ["README.md", "mmproj-x.gguf"]
    for model in ("org/repo:Q4_K_M", "hf.co/org/repo:q4_k_m", "org/repo:x-Q4_K_M.gguf"):
        path = tmp_path / "x-Q4_K_M.gguf"
        assert resolve_model(model, revision="main") == ModelFiles(
            str(path), "x-Q4_K_M", tmp_path.name
        )
        assert downloads(hub) == [["x-Q4_K_M.gguf"]]
    assert resolve_model("org/repo:UD-Q4_K_XL").name == "x-UD-Q4_K_XL"
    assert downloads(hub) == [["UD/x-UD-Q4_K_XL.gguf"]]
    choice = "name one of org/repo:UD-Q4_K_XL, org/repo:Q4_K_M, org/repo:Q8_0."
    assert refusal("org/repo:Q5_0") == f"org/repo has no .gguf file called 'Q5_0': {choice}"
    hub["files"] = ["README.md"]
    assert refusal("org/repo:Q8_0") == "org/repo has no .gguf file."
    hub["files"] = errors.RepositoryNotFoundError("no", response=response(404))
    hub["result"] = errors.LocalEntryNotFoundError("no")
    assert "there is no model 'org/repo'" in refusal("org/repo:Q8_0")


def test_a_repository_of_gguf_files(hub: dict[str, Any], tmp_path: Path) -> None:
    """Its snapshot has nothing of the usual, at most a config.json."""
    hub["result"] = str(tmp_path)
    hub["files"] = ["x-Q4_K_M.gguf", "x-Q8_0.gguf", "a/other.gguf", "b/x-Q8_0.gguf"]
    choice = "org/repo/a/other.gguf, org/repo/b/x-Q8_0.gguf, org/repo:Q4_K_M, org/repo/x-Q8_0.gguf."
    assert refusal("org/repo") == f"org/repo has several .gguf files: name one of {choice}"
    hub["files"] = [f"x-{number}.gguf" for number in range(100)]
    assert refusal("org/repo").endswith("org/repo/x-44.gguf and 60 more.")
    (tmp_path / "config.json").write_text("{}")
    hub["files"] = []
    assert "has no *.safetensors weights" in refusal("org/repo")
    hub["files"] = ["x-Q8_0.gguf"]
    gguf(tmp_path / "x-Q8_0.gguf")
    assert resolve_model("org/repo").name == "x-Q8_0"


def test_parts_on_the_hub(hub: dict[str, Any], tmp_path: Path) -> None:
    names = [f"x-Q8_0-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    (tmp_path / "q8").mkdir()
    for name in names:
        gguf(tmp_path / name)
        gguf(tmp_path / "q8" / name)
    hub["result"] = str(tmp_path)
    hub["files"] = [*reversed(names), "x-Q4_0.gguf"]
    for named, folder in ((f"/{names[1]}", ""), (f"/q8/{names[1]}", "q8/"), (":Q8_0", "")):
        model = ModelFiles(str(tmp_path / folder / names[0]), "x-Q8_0", tmp_path.name)
        assert resolve_model("org/repo" + named) == model
        assert downloads(hub) == [[folder + name for name in names]]


def test_a_gguf_repository_without_a_network(hub: dict[str, Any], tmp_path: Path) -> None:
    """The files that were downloaded before are the choice."""
    gguf(tmp_path / "x-Q8_0.gguf")
    gguf(tmp_path / "x-Q4_0.gguf")
    hub["files"] = errors.OfflineModeIsEnabled("offline")
    hub["result"] = str(tmp_path)
    assert resolve_model("org/repo:Q8_0").name == "x-Q8_0"
    assert "name one of org/repo:Q4_0, org/repo:Q8_0." in refusal("org/repo:Q5_0")
    hub["result"] = errors.LocalEntryNotFoundError("nothing")
    assert "can't be reached" in refusal("org/repo:Q5_0")


def response(status: int) -> Any:
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "http://hub"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: errors.GatedRepoError("no", response=response(403)), "is gated"),
        (lambda: errors.RepositoryNotFoundError("no", response=response(404)), "there is no model"),
        (lambda: errors.RevisionNotFoundError("no", response=response(404)), "no revision 'v9'"),
        (lambda: errors.HfHubHTTPError("no", response=response(500)), "answered 500"),
        (lambda: errors.LocalEntryNotFoundError("offline"), "can't be reached"),
        (lambda: errors.OfflineModeIsEnabled("offline"), "can't be reached"),
        (lambda: ConnectionError("refused"), "can't be downloaded from .*: refused; whole files"),
        (lambda: RuntimeError("line\nline"), "can't be downloaded from .*: line; whole files that"),
        (lambda: RuntimeError(), "can't be downloaded from .*: RuntimeError; whole files that"),
        (lambda: errors.EntryNotFoundError("no"), "lacks a file of a model"),
        (lambda: OSError(28, "full"), "no space left on the disk"),
        (lambda: errors.HFValidationError("bad"), "is not a Hugging Face id"),
    ],
)
def test_hub_errors(hub: dict[str, Any], error: Any, message: str) -> None:
    hub["result"] = error()
    with pytest.raises(ModelError, match=message) as raised:
        resolve_model("org/name", revision="v9")
    assert "org/name" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_repository_without_weights(hub: dict[str, Any], folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    hub["result"] = str(folder)
    assert refusal("org/name") == "org/name has no *.safetensors weights."
