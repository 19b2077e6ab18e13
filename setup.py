"""Builds minisgl._native with CMake and chooses the dependencies by what CMake found.

Environment: CMAKE_ARGS is passed to CMake as it is; CMAKE_BUILD_PARALLEL_LEVEL or MAX_JOBS limits
the compilers that run at once (default: the cores of this process).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD_DIR = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"

BASE_DEPENDENCIES = [
    "h11>=0.14",
    "huggingface-hub>=0.25",
    "hypercorn>=0.18,<0.19",  # server/listener.py overrides private methods of its classes
    "jinja2>=3.1.6",
    "llguidance==1.9.1",  # grammars; cpp/engine/llguidance.h has the layout of its structs
    "msgspec>=0.18",  # JSON and msgpack with checked types
    "numpy",
    "prometheus-client>=0.20",
    "prompt-toolkit>=3.0",
    "pyzmq>=26",
    "setproctitle>=1.3",
    "starlette>=0.40",
    "tokenizers>=0.21",
    "tqdm",
    "transformers>=4.45",  # only for tokenizers that come without tokenizer.json
    "uvloop>=0.19",
]


class Terminal:
    """Lines for the person at the terminal: pip shows a build's own output with -v only.

    Writes to the controlling terminal where there is one and stdout is not it.
    """

    def __init__(self) -> None:
        self.stream = None
        if not sys.stdout.isatty():
            with contextlib.suppress(OSError):  # no terminal: a log has ninja's own lines
                self.stream = open("/dev/tty", "w")  # noqa: SIM115 (for the whole build)

    def say(self, text: str) -> None:
        if self.stream:
            self.stream.write(f"\r\n  {text}")
            self.stream.flush()


def run(command: list[str], on_line=lambda line: None) -> None:
    """Runs a command and passes its output on, line by line; its failure ends the build."""
    print("+", shlex.join(command), flush=True)
    program = shutil.which(command[0])
    if not program:
        raise SystemExit(
            f"error: {command[0]} was not found; pip install {command[0]}, then try again"
        )
    with subprocess.Popen(
        [program, *command[1:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout
        for line in process.stdout:
            print(line, end="", flush=True)
            on_line(line)
    if process.returncode:
        raise SystemExit(
            f"error: {command[0]} failed with status {process.returncode}; the lines above say why"
        )


def parallel_jobs() -> int:
    """How many compilers run at once."""
    asked = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or os.environ.get("MAX_JOBS")
    return int(asked) if asked else len(os.sched_getaffinity(0))


@functools.cache
def configure() -> dict[str, str]:
    """Runs CMake's configuration, once a process.

    Returns what it found: "cuda" ("13.0", or "" in a CPU-only build), "nccl", "summary" (a line).
    """
    import pybind11

    command = [
        "cmake",
        f"-S{ROOT}",
        f"-B{BUILD_DIR}",
        "-GNinja",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DMINISGL_CUDA=AUTO",  # not what an earlier build's CMAKE_ARGS said
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]
    ninja = shutil.which("ninja")
    if ninja:  # an isolated environment has another path each time
        command.append(f"-DCMAKE_MAKE_PROGRAM={ninja}")
    cache = BUILD_DIR / "CMakeCache.txt"
    if cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text():
        command.append("--fresh")  # the folder was moved or copied
    run([*command, *shlex.split(os.environ.get("CMAKE_ARGS", ""))])
    return json.loads((BUILD_DIR / "build_info.json").read_text())


def dependencies(build_info: dict[str, str]) -> list[str]:
    """What the package needs at run time: a CUDA build adds torch and its CUDA version's NCCL."""
    if not build_info["cuda"]:
        return BASE_DEPENDENCIES
    cuda_major = build_info["cuda"].split(".")[0]
    return [*BASE_DEPENDENCIES, "torch>=2.4", f"nvidia-nccl-cu{cuda_major}"]


class CMakeBuild(build_ext):
    """Builds the one extension with CMake, incrementally, in build/cmake-*."""

    def build_extension(self, ext: Extension) -> None:
        terminal = Terminal()
        terminal.say(f"minisgl: {configure()['summary']}")
        shown = 0

        def show_progress(line: str) -> None:
            nonlocal shown
            counts = re.match(r"\[(\d+)/(\d+)\]", line)
            if counts:
                tenth = 10 * int(counts[1]) // int(counts[2])
                if tenth > shown:
                    shown = tenth
                    terminal.say(f"minisgl: {counts[1]} of {counts[2]} build steps")

        jobs = str(parallel_jobs())
        run(
            ["cmake", "--build", str(BUILD_DIR), "--target", "_native", "--parallel", jobs],
            show_progress,
        )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        (built,) = (BUILD_DIR / "cpp").glob("_native.*.so")
        shutil.copy2(built, target)


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("minisgl._native", sources=[])],
        cmdclass={"build_ext": CMakeBuild},
        install_requires=dependencies(configure()),
    )
