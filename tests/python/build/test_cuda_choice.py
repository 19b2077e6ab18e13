"""CMake's choice between a CUDA and a CPU-only build, over toolkits laid out in a folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.python.build.tools import ROOT, find_tool

NVCC = """#!/bin/sh
echo 'nvcc: NVIDIA (R) Cuda compiler driver'
echo 'Cuda compilation tools, release 12.8, V12.8.93'
"""


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder laid out as a whole CUDA 12.8 with cuBLAS and NCCL; nothing in it runs on a GPU."""
    root = tmp_path / "cuda"
    for folder in ("bin", "include", "lib64"):
        (root / folder).mkdir(parents=True)
    (root / "bin" / "nvcc").write_text(NVCC)
    (root / "bin" / "nvcc").chmod(0o755)
    (root / "include" / "cuda_runtime.h").write_text("#define CUDART_VERSION 12080\n")
    (root / "include" / "cuda.h").write_text("#define CUDA_VERSION 12080\n")
    (root / "include" / "cublasLt.h").write_text("")
    (root / "include" / "nccl.h").write_text(
        "#define NCCL_MAJOR 2\n#define NCCL_MINOR 27\n#define NCCL_PATCH 3\n"
    )
    for library in ("libcudart.so", "libcudart_static.a", "libcublasLt.so"):
        (root / "lib64" / library).write_text("")
    return root


def configure(
    toolkit: Path, build: Path, cuda: str = "AUTO"
) -> tuple[subprocess.CompletedProcess[str], dict[str, str]]:
    result = subprocess.run(
        [
            *(find_tool("cmake"), "-GNinja", f"-S{ROOT}", f"-B{build}"),
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DMINISGL_BUILD_PYTHON=OFF",
            f"-DMINISGL_CUDA={cuda}",
            f"-DCUDAToolkit_ROOT={toolkit}",
            # Only the toolkit under test is looked at, not the machine's own.
            "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF",
            "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF",
            f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
            f"-DCMAKE_CXX_COMPILER={os.environ.get('CXX') or find_tool('c++')}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    written = build / "build_info.json"
    return result, json.loads(written.read_text()) if written.exists() else {}


def test_whole_toolkit_is_a_cuda_build(toolkit: Path, tmp_path: Path) -> None:
    result, info = configure(toolkit, tmp_path / "build")
    assert (info["cuda"], info["nccl"]) == ("12.8", "2.27.3")
    assert "minisgl: CUDA build: CUDA 12.8" in result.stdout
    # After the choice CMake tries the compiler, and this one is a script.
    assert "CUDA compiler" in result.stderr


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        ("include/cublasLt.h", "cuBLAS headers were not found"),
        ("lib64/libcublasLt.so", "the cuBLAS library for CUDA 12 was not found"),
        ("include/nccl.h", "NCCL headers were not found"),
        ("lib64/libcudart_static.a", "the static CUDA runtime"),
    ],
)
def test_incomplete_toolkit_is_a_cpu_build_that_says_why(
    toolkit: Path, tmp_path: Path, missing: str, named: str
) -> None:
    (toolkit / missing).unlink()
    result, info = configure(toolkit, tmp_path / "build")
    assert result.returncode == 0, result.stderr
    assert (info["cuda"], info["nccl"]) == ("", "")
    lines = [line for line in result.stdout.splitlines() if "minisgl:" in line]
    assert len(lines) == 1
    assert named in lines[0]

    result, _ = configure(toolkit, tmp_path / "build-on", cuda="ON")
    assert result.returncode != 0
    assert named in " ".join(result.stderr.split())


def test_off_never_looks(toolkit: Path, tmp_path: Path) -> None:
    _, info = configure(toolkit, tmp_path / "build", cuda="OFF")
    assert info["cuda"] == ""
    assert info["summary"] == "CPU-only build: MINISGL_CUDA=OFF"


def test_unknown_choice_is_refused(toolkit: Path, tmp_path: Path) -> None:
    result, _ = configure(toolkit, tmp_path / "build", cuda="MAYBE")
    assert result.returncode != 0
    assert "MINISGL_CUDA must be AUTO, ON or OFF, got 'MAYBE'" in result.stderr
