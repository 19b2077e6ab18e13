"""A server of two replicas with adapters: streams keep theirs when a replica is lost, and every
replica has what was loaded, whenever it began.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch.servers import DEADLINE, ServerProcess, Stream, get, until
from tests.python.models.lora_adapters import save_adapter
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of
from tests.python.running.test_replicas import KEY, change, live_at, rank_of, replicas, serving

NAMES = ["", "a", "b"]
TOKENS = 600


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        save_adapter(tiny_model, folder / name, seed=seed)
    return folder


@pytest.fixture(scope="module")
def server(
    tiny_model: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with replicas(tiny_model, folder, 2, f"--lora=a={adapters / 'a'}") as server:
        yield server


def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    answer = response.status, response.read().decode()
    connection.close()
    return answer


def begin(port: int, count: int = 9) -> list[Stream]:
    return [
        Stream(port, [5, 6, 7], TOKENS, ignore_eos=True, model=NAMES[number % 3])
        for number in range(count)
    ]


def test_adapters_outlive_replicas(server: ServerProcess, adapters: Path) -> None:
    port = server.wait_ready()
    load = {"lora_name": "b", "lora_path": str(adapters / "b")}
    assert post(port, "/v1/load_lora_adapter", load)[0] == 200
    status, answer = post(
        port, "/v1/load_lora_adapter", {**load, "lora_name": "c", "lora_path": "/"}
    )
    assert status == 400
    assert "adapter_config.json" in answer
    models = get(port, "/v1/models")[1]["data"]
    assert [one["id"] for one in models][-2:] == ["a", "b"]

    texts = [text_of(stream) for stream in begin(port)]
    assert len(set(texts)) == 3  # the model's, and each adapter's
    assert texts == texts[:3] * 3

    def lose_one() -> bool:
        streams = begin(port)
        until(lambda: live_at(port, 1) > 0)
        os.kill(rank_of(server, 1), signal.SIGKILL)
        assert [text_of(stream) for stream in streams] == texts
        return "requests go on elsewhere" in server.output

    until(lose_one)
    until(lambda: serving(port) == 2)
    # A replica that begins, and one that is started again, have them.
    assert change(port, "DELETE", "/0") == "removed"
    assert change(port, "POST") == "ready"
    assert change(port, "POST", "/1/restart?drain=0") == "ready"
    assert [text_of(stream) for stream in begin(port)] == texts

    assert post(port, "/v1/unload_lora_adapter", {"lora_name": "b"})[0] == 200
    assert [one["id"] for one in get(port, "/v1/models")[1]["data"]][-1] == "a"
    assert post(port, "/v1/completions", {"model": "b", "prompt": "x"})[0] == 404
    assert text_of(begin(port, 2)[1]) == texts[1]


def test_a_broken_adapter_ends_the_start(tiny_model: Path, tmp_path: Path) -> None:
    flags = ("--device", "cpu", f"--lora=x={tmp_path / 'nothing'}")
    server = ServerProcess(tiny_model, tmp_path, *flags, program=PROGRAM)
    assert server.wait() == 1
    assert "is no folder: an adapter is one" in server.output
    assert "Traceback" not in server.output
