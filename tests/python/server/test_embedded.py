"""The application without a socket, and what Ray Serve LLM says in our words; without Ray."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from minisgl.config import OptionError
from minisgl.ray import MinisglServer
from minisgl.ray.embedded import post
from minisgl.ray.serve_llm import server_args
from minisgl.server.app import create_app
from tests.python.server.conftest import StartServer
from tests.python.server.fake_engine import reply


def llm_config(**changes: Any) -> SimpleNamespace:
    loading = SimpleNamespace(model_id="named", model_source="org/source")
    defaults = {
        "model_loading_config": loading,
        "engine_kwargs": {},
        "deployment_config": {},
        "accelerator_type": None,
        "runtime_env": None,
    }
    return SimpleNamespace(**{**defaults, **changes})


async def test_an_application_is_asked_within_its_process(start_server: StartServer) -> None:
    async with start_server(reply("Grüße")) as server:
        app = create_app(server.state)
        body = {"prompt": "hi", "stream": True}
        path = "/v1/completions"
        headers = {"x-request-id": "mine"}
        async with post(app, path, json.dumps(body).encode(), headers) as answer:
            assert (answer.status, answer.is_stream) == (200, True)
            assert answer.headers[b"x-request-id"] == b"mine"
            text = "".join([text async for text in answer.texts()])
        assert text.endswith("data: [DONE]\n\n")
        events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
        assert "".join(event["choices"][0]["text"] for event in events) == "Grüße"
        async with post(app, path, b'{"prompt": "hi", "max_tokens": -3}', {}) as answer:
            assert (answer.status, answer.is_stream) == (400, False)
            content = json.loads("".join([text async for text in answer.texts()]))
        assert content["error"]["param"] == "max_tokens"


async def test_whoever_leaves_early_is_a_client_that_has_gone(start_server: StartServer) -> None:
    async with start_server() as server:
        app = create_app(server.state)
        body = b'{"prompt": "hi", "stream": true}'
        async with post(app, "/v1/completions", body, {}) as answer:
            assert answer.status == 200
        assert server.state.client.num_live == 0


def test_engine_kwargs_are_ours_or_vllms_and_others_are_refused() -> None:
    args = server_args(
        llm_config(
            engine_kwargs={
                "tensor_parallel_size": 2,
                "max_num_seqs": 8,
                "gpu_memory_utilization": 0.5,
                "enable_prefix_caching": False,
                "kv_cache_tokens": 4096,
            }
        )
    )
    assert (args.model, args.served_model_name) == ("org/source", ("named",))
    assert (args.tp, args.max_running, args.memory_fraction) == (2, 8, 0.5)
    assert (args.disable_prefix_cache, args.kv_cache_tokens) == (True, 4096)
    with pytest.raises(OptionError, match="pipeline_parallel_size is no engine_kwarg"):
        server_args(llm_config(engine_kwargs={"pipeline_parallel_size": 2}))
    with pytest.raises(OptionError, match="max_running must be between"):
        server_args(llm_config(engine_kwargs={"max_num_seqs": 0}))


def test_a_replica_asks_for_what_its_ranks_need() -> None:
    options = MinisglServer.get_deployment_options(
        llm_config(
            engine_kwargs={"tensor_parallel_size": 2, "num_threads": 3},
            deployment_config={"num_replicas": 4, "ray_actor_options": {"memory": 5}},
            accelerator_type="H200",
        )
    )
    assert options == {
        "num_replicas": 4,
        "max_ongoing_requests": 1024,
        "ray_actor_options": {
            "num_cpus": 6,
            "num_gpus": 2,
            "accelerator_type": "H200",
            "memory": 5,
        },
    }
