"""What every process that this one starts is given, and what it must not get. ipc/process.py starts
ranks and tokenizers, text/limited_process.py those of chat templates and grammars, rank/grammars.py
the reader of a vocabulary, engine/machine.py the search for GPUs, successors.py that for another
model, model_files/default_model.py an installer; nothing else starts a process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio.subprocess

# `python -m` and `python -c` put the working folder first on sys.path: a uvloop.py or zmq.py there
# would be run. (`python -P` is for 3.11 and later; PYTHONSAFEPATH in the environment has the same
# effect, and then there is nothing to take away.)
_RUN_MODULE = (
    "import sys; sys.path[0] or sys.path.pop(0); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


def python_command(module: str) -> tuple[str, ...]:
    """The command of a child that runs a module, as `python -m MODULE` does, but never one of the
    working folder, which may be a folder of somebody else. PYTHONPATH counts, as for this process.
    """
    return (sys.executable, "-c", _RUN_MODULE, module)


def child_environment() -> dict[str, str]:
    """This process's environment without the secrets among the options of minisgl-serve."""
    from minisgl.flags import secret_variables  # children that start none need no flags

    secrets = secret_variables()
    return {name: value for name, value in os.environ.items() if name not in secrets}


def die_with_parent(sent: signal.Signals) -> None:
    """Asks the kernel for a signal at the parent's death. SIGKILL also ends a child that is
    stopped, but leaves it no time: it is for one that has nothing to tidy up.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, sent, 0, 0, 0) != 0:
        logger.warning(
            "the kernel won't end this process with its parent (prctl): %s",
            os.strerror(ctypes.get_errno()),
        )


def signal_child(process: asyncio.subprocess.Process, sent: signal.Signals) -> None:
    """Sends a signal to a child that may have ended meanwhile. (The process's own method would take
    the status of one that has, and asyncio then tells 255 in its place.)
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, sent)


def run_tool(
    command: Sequence[str], *, environment: Mapping[str, str], folder: str | None = None
) -> tuple[int, str]:
    """Runs a program of somebody else to its end, with its output on the screen. Returns its status
    and what it wrote to its standard error.

    It ends with this process, and with this call: what it has started itself, too.
    """
    process = subprocess.Popen(
        (*python_command("minisgl.children"), str(os.getpid()), *command),
        stdin=subprocess.DEVNULL,
        stdout=2,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return process.returncode, errors


def _become(parent_pid: str, *command: str) -> None:
    """Turns this process into the command, which then ends with its parent."""
    die_with_parent(signal.SIGTERM)
    if os.getppid() == int(parent_pid):
        os.execvp(command[0], command)


if __name__ == "__main__":
    _become(*sys.argv[1:])
