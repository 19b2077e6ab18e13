"""A server process for tests: start it, see what it says, talk to it, look for what it leaves."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from tests.python.waiting import PATIENCE

SERVER = Path(__file__).with_name("fake_server.py")
DEADLINE = PATIENCE  # seconds for anything that a test waits for


def make_model(folder: Path) -> Path:
    """A model folder with a tokenizer of bytes and no weights, which the fake rank doesn't read."""
    folder.mkdir()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: number for number, character in enumerate(alphabet)}
    vocabulary |= {f"<{number}>": number for number in range(len(alphabet), 1000)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


class ServerProcess:
    """`minisgl-serve` with a temporary directory of its own and a free port; with the fake rank
    unless `program` is another one than that of this folder.
    """

    def __init__(
        self,
        model: Path | str,
        directory: Path,
        *flags: str,
        environment: dict[str, str] | None = None,
        program: Sequence[str] = (str(SERVER),),
        folder: Path | None = None,
        limit: Callable[[], None] | None = None,
    ) -> None:
        """`folder`: the working folder, where it isn't this process's; `limit` runs in the process
        before the program does.
        """
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, *program, "--port", "0", *flags, str(model)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            preexec_fn=limit,
            env={**os.environ, "TMPDIR": str(directory), **(environment or {})},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """The first line with the pattern."""

        def found() -> re.Match[str] | None:
            matches = (re.search(pattern, line) for line in list(self.lines))
            return next((match for match in matches if match), None)

        return until(found, lambda: f"no {pattern!r} in:\n{self.output}")

    def wait_ready(self) -> int:
        """Its port, once it is ready."""
        return int(self.wait_for_line(r"ready after .* http://127\.0\.0\.1:(\d+)")[1])

    def children(self) -> list[int]:
        """Ids of its running child processes."""
        own = str(self.process.pid)
        return [
            pid for pid, (state, parent) in processes().items() if parent == own and state != "Z"
        ]

    def ranks(self) -> list[int]:
        """Ids of the processes that have become ranks, in the order of their names."""
        names = {pid: rank_name(pid) for pid in self.children()}
        return sorted(filter(names.get, names), key=lambda pid: natural(names[pid]))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, timeout: float = DEADLINE) -> int:
        status = self.process.wait(timeout)
        self._reader.join(DEADLINE)
        return status

    def files(self) -> list[str]:
        """What stands in its temporary directory."""
        return sorted(os.listdir(self.directory))

    def end_in_order(self) -> None:
        """Asks it to end, where it hasn't ended, and expects that all went well."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            assert self.wait() == 0, self.output
        assert "Traceback" not in self.output

    def end(self) -> None:
        for pid in [*self.children(), self.process.pid]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def processes() -> dict[int, tuple[str, str]]:
    """State and parent's id of each process of this machine."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            found[int(folder.name)] = (state, parent)
    return found


def process_name(pid: int) -> str:
    """What ps shows of a process's command line: its name, once it has taken one."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return b" ".join(words).decode()


def rank_name(pid: int) -> str:
    """The name of a process that is a rank or about to become one; "" of others."""
    with contextlib.suppress(OSError):  # a process that has just ended
        found = re.search(rb"minisgl-TP[^\0]*", Path(f"/proc/{pid}/cmdline").read_bytes())
        return found[0].decode() if found else ""
    return ""


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts numbers in names as numbers."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def is_called(pid: int, name: str) -> bool:
    """Whether a process has such a name, or was given it as an argument and is about to take it."""
    with contextlib.suppress(OSError):  # a process that has just ended
        return name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def alive(pid: int) -> bool:
    return processes().get(pid, ("Z", ""))[0] != "Z"


def until(condition: Callable[[], Any], message: Callable[[], str] = lambda: "timed out") -> Any:
    """What `condition` returns, once that is true."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if result := condition():
            return result
        time.sleep(0.02)
    raise AssertionError(message())


def named_memory() -> list[str]:
    """What of ours could stay behind in /dev/shm: ranks share memory that has no name."""
    return [name for name in os.listdir("/dev/shm") if "minisgl" in name]


def get(port: int, path: str) -> tuple[int, Any]:
    """Status and JSON body of a GET."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


class Stream:
    """A streaming completion in a thread: its events as they come."""

    def __init__(self, port: int, prompt: list[int], max_tokens: int, **fields: Any) -> None:
        self.status = 0
        self.events: list[str] = []
        self.arrivals: list[float] = []  # time.monotonic() of each
        self.broken = False  # the body ended without its last chunk
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        body = {"prompt": prompt, "max_tokens": max_tokens, "stream": True, "temperature": 0}
        body |= fields
        self._connection.request(
            "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            response = self._connection.getresponse()
            self.status = response.status
            for line in response:
                if text := line.decode().strip():
                    self.arrivals.append(time.monotonic())
                    self.events.append(text)
        except (http.client.HTTPException, OSError):
            self.broken = True
        finally:
            self._connection.close()

    @property
    def alive(self) -> bool:
        """Whether it goes on."""
        return self._thread.is_alive()

    def wait_events(self, count: int) -> None:
        until(lambda: len(self.events) >= count)

    def join(self) -> str:
        """Everything received, once it has ended."""
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        return "\n".join(self.events)
