"""minisgl in Ray Serve: as a plain deployment, and as the server class of Ray Serve LLM, whose
classes of requests come from a stand-in: they are vLLM's or SGLang's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.python.launch.servers import until
from tests.python.ports import LOOPBACK, free_port
from tests.python.ray.conftest import SETTINGS

STAND_INS = Path(__file__).with_name("stand_ins")
BODY = {"prompt": [5, 6, 7], "max_tokens": 300, "temperature": 0}
HTTP_SECONDS = 60.0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Ray Serve on a cluster of one node."""
    before = dict(os.environ)
    os.environ.update(SETTINGS)
    os.environ["PYTHONPATH"] = str(STAND_INS)  # of the workers
    import ray
    from ray import serve

    port = free_port()
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        _node_ip_address=LOOPBACK,
        object_store_memory=80 * 2**20,
    )
    serve.start(http_options={"host": LOOPBACK, "port": port})
    yield f"http://{LOOPBACK}:{port}"
    serve.shutdown()
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


def ask(url: str, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
    return httpx.post(url + path, json={**BODY, **fields}, timeout=HTTP_SECONDS)


def streamed(url: str, **fields: Any) -> str:
    """The text of a streaming completion."""
    text = ""
    body = {**BODY, **fields, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=HTTP_SECONDS) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = b"".join(answer.iter_raw()).decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    for event in events[:-2]:
        text += json.loads(event.removeprefix("data: "))["choices"][0]["text"]
    return text


def test_a_plain_deployment_serves_streams_and_notices_clients_that_go(
    url: str, tiny_model: Path
) -> None:
    from ray import serve

    from minisgl.ray.serve import app

    flags = {
        "model": str(tiny_model),
        "device": "cpu",
        "kv_cache_tokens": "16K",
        "disable_overlap": "1",
    }
    serve.run(app(flags), name="plain", route_prefix="/plain")
    own = f"{url}/plain"
    whole = ask(own)
    assert whole.status_code == 200
    assert streamed(own) == whole.json()["choices"][0]["text"]
    refused = ask(own, max_tokens=-3)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")
    assert httpx.get(f"{own}/ready").status_code == 200

    body = {**BODY, "max_tokens": 15_000, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{own}/v1/completions", json=body, timeout=HTTP_SECONDS) as answer:
        next(answer.iter_raw())
    gone = 'minisgl:request_success_total{engine="0",finished_reason="abort",model_name="tiny"} 1.0'
    until(lambda: gone in httpx.get(f"{own}/metrics").text)
    serve.delete("plain")


def test_the_application_is_made_before_anybody_has_connected(url: str) -> None:
    """As `serve run` does it, which connects afterwards."""
    import ray

    program = (
        "import ray; from minisgl.ray.serve import app; app({'threads': 2, 'tp': 3}); "
        "assert not ray.is_initialized()"
    )
    address = ray.get_runtime_context().gcs_address
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"Connecting to existing Ray cluster at address: {address}" in done.stderr


@pytest.fixture(scope="module")
def llm_config(tiny_model: Path) -> Any:
    for needed in ("pyarrow", "multipart"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"Ray Serve LLM needs {needed}")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(STAND_INS))
        from ray.serve.llm import LLMConfig

        yield LLMConfig(
            model_loading_config={"model_id": "named", "model_source": str(tiny_model)},
            engine_kwargs={"device": "cpu", "kv_cache_tokens": 16384, "max_num_seqs": 8},
            server_cls="minisgl.ray:MinisglServer",
        )


@pytest.mark.long
def test_the_server_class_serves_behind_the_ingress_of_ray_serve_llm(
    url: str, llm_config: Any
) -> None:
    from ray import serve
    from ray.serve.llm import build_openai_app

    serve.run(build_openai_app({"llm_configs": [llm_config]}), name="llm", route_prefix="/llm")
    own = f"{url}/llm"
    models = httpx.get(f"{own}/v1/models", timeout=HTTP_SECONDS)
    assert models.status_code == 200, models.text
    assert [card["id"] for card in models.json()["data"]] == ["named"]
    whole = ask(own, model="named")
    assert whole.status_code == 200, whole.text
    assert streamed(own, model="named") == whole.json()["choices"][0]["text"]
    chat = {"model": "named", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
    answer = httpx.post(f"{own}/v1/chat/completions", json=chat, timeout=HTTP_SECONDS)
    assert answer.json()["usage"]["completion_tokens"] == 5
    refused = ask(own, model="named", max_tokens=-3)
    assert refused.status_code == 400, refused.text
    assert "max_tokens" in refused.text
    serve.delete("llm")


@pytest.mark.long
def test_the_server_class_is_an_application_of_its_own(url: str, llm_config: Any) -> None:
    """What direct streaming has of it, without its proxy."""
    from ray import serve

    from minisgl.ray import MinisglServer

    options = MinisglServer.get_deployment_options(llm_config)
    deployment = serve.deployment(serve.ingress()(MinisglServer), name="direct", **options)
    serve.run(deployment.bind(llm_config), name="direct", route_prefix="/direct")
    own = f"{url}/direct"
    assert streamed(own) == ask(own, model="named").json()["choices"][0]["text"]
    assert httpx.get(f"{own}/v1/models/named").json()["id"] == "named"
    serve.delete("direct")
