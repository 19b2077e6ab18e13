"""What a running server holds: its own gauges, and what the kernel says of its processes."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.python.launch.servers import DEADLINE, until

IDLE = {
    "num_requests_running": 0.0,
    "num_requests_waiting": 0.0,
    "kv_cache_usage_perc": 0.0,
    "num_streams": 0.0,
}


def gauges(port: int) -> dict[str, float]:
    """minisgl's gauges by name."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    labels = r'{(?:engine="0",)?model_name="[^"]*"(?:,engine="0")?}'
    samples = re.findall(rf"^minisgl:(\w+){labels} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


def until_idle(port: int) -> None:
    """Waits until the engine and the server hold no request and no page."""

    def idle() -> bool:
        now = gauges(port)
        return all(now[name] == value for name, value in IDLE.items())

    until(idle, lambda: f"still there: {gauges(port)}")


@dataclass(frozen=True)
class ProcessSize:
    """Of one process."""

    num_files: int
    num_threads: int
    resident: int  # bytes


def process_size(pid: int) -> ProcessSize:
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(re.findall(r"^(VmRSS|Threads):\s+(\d+)", status, re.M))
    return ProcessSize(
        len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]), int(fields["VmRSS"]) * 1024
    )


class HealthWatch:
    """Asks for /health all the time: the seconds that the slowest answer took."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.slowest = 0.0
        self.answers = 0

    def __enter__(self) -> HealthWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(DEADLINE)
        self._connection.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.perf_counter()
            self._connection.request("GET", "/health")
            response = self._connection.getresponse()
            response.read()
            assert response.status == 200
            self.slowest = max(self.slowest, time.perf_counter() - began)
            self.answers += 1
            time.sleep(0.002)
