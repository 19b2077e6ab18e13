"""What the package declares: dependencies follow the build, and the wheel holds what it must."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

from minisgl import _native

ROOT = Path(__file__).resolve().parents[3]


def package_names(requirements: list[str]) -> set[str]:
    """Names without versions, of the requirements that no extra asks for."""
    return {
        re.split(r"[^\w.-]", requirement)[0].lower()
        for requirement in requirements
        if "extra ==" not in requirement
    }


@pytest.fixture(scope="module")
def setup_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minisgl_setup", ROOT / "setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_installed_package_needs_torch_and_nccl_only_for_cuda() -> None:
    names = package_names(importlib.metadata.requires("minisgl") or [])
    gpu_packages = {name for name in names if name == "torch" or name.startswith("nvidia-")}
    cuda_major = _native.build_info()["cuda"].split(".")[0]
    assert gpu_packages == ({"torch", f"nvidia-nccl-cu{cuda_major}"} if cuda_major else set())


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("", set()),
        ("12.8", {"torch", "nvidia-nccl-cu12"}),
        ("13.0", {"torch", "nvidia-nccl-cu13"}),
    ],
)
def test_dependencies_follow_the_cuda_version(
    setup_script: ModuleType, cuda: str, expected: set[str]
) -> None:
    names = package_names(setup_script.dependencies({"cuda": cuda}))
    assert names - package_names(setup_script.BASE_DEPENDENCIES) == expected


def test_the_extras_do_not_leak_into_the_base() -> None:
    requirements = importlib.metadata.requires("minisgl") or []
    torch = [requirement for requirement in requirements if requirement.startswith("torch")]
    assert any('extra == "test"' in requirement for requirement in torch)


def test_the_command_is_declared() -> None:
    (command,) = [
        entry
        for entry in importlib.metadata.entry_points(group="console_scripts")
        if entry.name == "minisgl-serve"
    ]
    assert command.value == "minisgl.launch:launch_server"
    assert callable(command.load())


@pytest.mark.parametrize("name", ["py.typed", "_native.pyi"])
def test_the_package_carries_its_types(name: str) -> None:
    assert files("minisgl").joinpath(name).is_file()


def test_the_wheel_holds_the_package_alone() -> None:
    tops = {Path(file.parts[0]) for file in importlib.metadata.files("minisgl") or []}
    others = [
        str(top)
        for top in tops
        if str(top) not in ("minisgl", "..")  # ..: the command's script
        and top.suffix != ".dist-info"
        and not top.name.startswith("__editable__")
    ]
    assert tops
    assert others == []


def test_the_version_is_the_same_everywhere() -> None:
    assert _native.build_info()["version"] == importlib.metadata.version("minisgl")


def test_the_native_module_links_neither_torch_nor_nccl() -> None:
    path = _native.__file__
    assert path
    lines = subprocess.run(["ldd", path], capture_output=True, text=True, check=True).stdout
    linked = [line.split()[0] for line in lines.splitlines()]  # addresses follow, which vary
    assert "libstdc++.so.6" in linked
    assert not [name for name in linked if re.search(r"torch|c10|nccl|cudart|cublas", name)]


def test_serving_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, minisgl.launch, minisgl.server, minisgl.offline.llm, minisgl.tokenizer\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
