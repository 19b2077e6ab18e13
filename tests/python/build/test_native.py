"""Builds and runs the native tests (GoogleTest), so that one command runs all tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.python.build.tools import ROOT, find_tool

BUILD = ROOT / "build" / "native-tests"  # kept between runs: only what changed is compiled again


def run(*command: str, timeout: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )


def test_native_tests_pass() -> None:
    configured = run(
        *(find_tool("cmake"), "-GNinja", f"-S{ROOT}", f"-B{BUILD}"),
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        "-DMINISGL_BUILD_TESTS=ON",
        "-DMINISGL_BUILD_PYTHON=OFF",
        "-DMINISGL_CUDA=OFF",
        timeout=300,
    )
    if re.search(r"(?i)could not find.*gtest", configured.stdout) and not os.environ.get("CI"):
        pytest.skip("GoogleTest was not found (Debian: libgtest-dev and libgmock-dev)")
    assert configured.returncode == 0, configured.stdout[-8000:]

    built = run(find_tool("cmake"), "--build", str(BUILD), "--parallel", timeout=1800)
    assert built.returncode == 0, built.stdout[-8000:]

    tested = run(
        *(find_tool("ctest"), "--test-dir", str(BUILD), "--output-on-failure"),
        *("--no-tests=error", "--timeout", "300"),
        timeout=1800,
    )
    assert tested.returncode == 0, tested.stdout[-8000:]
    print(tested.stdout[-300:])
