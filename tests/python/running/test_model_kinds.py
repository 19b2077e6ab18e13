"""Random requests to a server over two ranks: of a mixture of experts with attention sinks, cut by
whole experts, and of FP8 weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given

from tests.python.running.conftest import RunningServer, StartServer
from tests.python.running.measures import until_idle
from tests.python.running.test_random_requests import (
    EXAMPLES,
    ask,
    check_of,
    requests,
    starts,
)
from tests.python.running.tiny_model import make_model_of


@pytest.fixture(scope="module", params=["gpt_oss", "fp8"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture(scope="module")
def tiny_model(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_of(kind, tmp_path_factory.mktemp("kinds") / "tiny")


@pytest.fixture(scope="module")
def server(kind: str, start_server: StartServer) -> RunningServer:
    return start_server("--tp", "2", *(["--expert-parallel"] if kind == "gpt_oss" else []))


@pytest.fixture(scope="module")
def others(server: RunningServer) -> Any:
    """Bystanders for all examples of a test, and an idle server after them."""
    with server.others.unharmed():
        yield
    until_idle(server.port)


@EXAMPLES
@given(request=requests)
def test_fields(server: RunningServer, others: None, request: tuple[str, dict[str, Any]]) -> None:
    path, body = request
    content = json.dumps({**starts[path], **body}).encode()
    check_of(path)(*ask(server.port, "POST", path, content))
