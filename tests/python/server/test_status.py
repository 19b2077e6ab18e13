"""Pages about the server: life, readiness, models, version, metrics, tokens."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from minisgl import __version__
from tests.python.server.byte_tokenizer import TURN
from tests.python.server.conftest import MODEL, Server, StartServer
from tests.python.server.fake_engine import endless, reply


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        ("starting", 200, 503),
        ("ready", 200, 200),
        ("restarting", 200, 503),
        ("draining", 200, 503),
        ("failed", 503, 503),
    ],
)
async def test_health_and_readiness(server: Server, state: str, health: int, ready: int) -> None:
    server.engine.state = state
    assert (await server.http.get("/health")).status_code == health
    answer = await server.http.get("/ready")
    assert answer.status_code == ready
    request = await server.chat()
    assert request.status_code == ready
    if ready == 503:
        for refused in (answer, request):
            assert int(refused.headers["retry-after"]) > 0
            assert refused.json()["error"]["type"] == "service_unavailable"
    assert (await server.http.get("/v1/models")).status_code == 200
    assert (await server.http.get("/metrics")).status_code == 200


async def test_not_ready_without_a_tokenizer(server: Server) -> None:
    server.state.text = None
    assert (await server.http.get("/ready")).status_code == 503
    assert (await server.chat()).status_code == 503


async def test_models(server: Server) -> None:
    answer = (await server.http.get("/v1/models")).json()
    assert answer["object"] == "list"
    card = answer["data"][0]
    assert (card["id"], card["object"], card["max_model_len"]) == (MODEL, "model", 256)
    assert card["created"] == server.state.created
    assert (card["root"], card["parent"]) == (MODEL, None)
    assert card["permission"][0]["object"] == "model_permission"
    assert card["permission"][0]["allow_sampling"]


async def test_a_model_has_several_names(server: Server) -> None:
    cards = (await server.http.get("/v1/models")).json()["data"]
    assert [card["id"] for card in cards] == [MODEL, "alias"]
    assert (await server.http.get("/v1/models/alias")).json()["id"] == "alias"
    for name in ("alias", MODEL, "", None):
        answer = await server.chat(model=name)
        assert (answer.status_code, answer.json()["model"]) == (200, MODEL)
    answer = await server.chat(model="other")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


async def test_the_root_is_what_the_command_said(start_server: StartServer) -> None:
    async with start_server(model="/models/x") as server:
        card = (await server.http.get("/v1/models")).json()["data"][0]
        assert (card["id"], card["root"]) == (MODEL, "/models/x")


async def test_version_and_head(server: Server) -> None:
    assert (await server.http.get("/version")).json() == {"version": __version__}
    assert (await server.http.head("/health")).status_code == 200


async def test_tokenize_and_back(server: Server) -> None:
    answer = await server.http.post(
        "/tokenize", json={"model": MODEL, "prompt": "aé", "return_token_strs": True}
    )
    assert answer.json() == {
        "count": 3,
        "max_model_len": 256,
        "tokens": [97, 195, 169],
        "token_strs": ["a", "bytes:\\xc3", "bytes:\\xa9"],
    }
    answer = await server.http.post("/detokenize", json={"tokens": [97, 195, 169, TURN]})
    assert answer.json() == {"prompt": "aé<turn>"}
    messages = [{"role": "user", "content": "hi"}]
    answer = await server.http.post("/tokenize", json={"messages": messages})
    assert answer.json()["tokens"] == [TURN, *b"u:hi\n", TURN, *b"a:"]
    answer = await server.http.post(
        "/tokenize", json={"messages": messages, "add_generation_prompt": False}
    )
    assert answer.json()["tokens"] == [TURN, *b"u:hi\n"]


async def test_tokenizer_info(server: Server) -> None:
    assert server.state.text is not None
    config = {"eos_token": "<end>", "chat_template": "x", "vocab_file": "/home/me/vocab.json"}
    server.state.text.tokenizer.config.update(config)
    info = (await server.http.get("/tokenizer_info")).json()
    assert info == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<end>",
        "pad_token": None,
        "chat_template": "x",
    }


async def test_tokenizer_info_needs_the_key(start_server: StartServer) -> None:
    async with start_server(api_key=("secret",)) as server:
        assert (await server.http.get("/tokenizer_info")).status_code == 401


async def samples(server: Server) -> dict[tuple[str, str], float]:
    """(sample name, values of the labels but model_name, with spaces between) to value."""
    text = (await server.http.get("/metrics")).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if not sample.name.startswith("process_") and "http_request" not in sample.name:
                assert labels.pop("model_name") == MODEL
            found[sample.name, " ".join(labels.values())] = sample.value
    return found


@pytest.mark.parametrize("prefix", ["minisgl", "vllm"])
async def test_metrics(start_server: StartServer, prefix: str) -> None:
    async with start_server(reply("Hello", delay=0.001)) as server:
        await server.complete("ab", n=2)
        await server.complete("ab", max_tokens=2, stream=True)
        found = await samples(server)
        expected = {
            "num_requests_running": 3,
            "num_requests_waiting": 2,
            "kv_cache_usage_perc": 0.25,
            "num_preemptions_total": 7,
            "prompt_tokens_total": 6,
            "generation_tokens_total": 14,
            "time_to_first_token_seconds_count": 3,
            "inter_token_latency_seconds_count": 11,
            "e2e_request_latency_seconds_count": 3,
            "request_queue_time_seconds_sum": 0.003,
            "request_prefill_time_seconds_sum": 0.006,
            "request_decode_time_seconds_sum": 0.009,
            "request_prompt_tokens_sum": 6,
            "request_generation_tokens_sum": 14,
        }
        for name, value in expected.items():
            assert found[f"{prefix}:{name}", ""] == pytest.approx(value), name
        assert found[f"{prefix}:request_success_total", "stop"] == 2
        assert found[f"{prefix}:request_success_total", "length"] == 1
        assert found[f"{prefix}:request_generation_tokens_bucket", "4.0"] == 1
        assert found[f"{prefix}:request_generation_tokens_bucket", "+Inf"] == 3


async def test_metrics_of_the_engine(server: Server) -> None:
    server.engine.num_restarts, server.engine.num_replaying = 4, 3
    found = await samples(server)
    for name, value in (
        ("engine_restarts_total", 4),
        ("num_requests_replaying", 3),
        ("engine_steps_total", 50),
        ("engine_step_seconds_count", 50),
        ("engine_step_seconds_sum", 2.5),
        ("num_streams", 0),
    ):
        assert found[f"minisgl:{name}", ""] == value
        assert (f"vllm:{name}", "") not in found


async def test_metrics_of_http(start_server: StartServer) -> None:
    async with start_server(reply("Hello"), api_key=("key",)) as server:
        key = {"authorization": "Bearer key"}
        for path in ("/v1/models/a", "/v1/models/b/c", "/v1/models/" + MODEL):
            await server.http.get(path, headers=key)
        await server.chat()
        await server.http.post("/v1/chat/completions", headers=key, json={"messages": []})
        await server.http.get("/v1/chat/completions")
        await server.http.head("/health")
        for path in ("/a", "/b", "/v1/chat/completions/x"):
            await server.http.request("BREW", path)
        found = await samples(server)
    counts = {
        labels: value
        for (name, labels), value in found.items()
        if name == "minisgl:http_requests_total"
    }
    assert counts == {
        "GET /v1/models/{name} 404": 2,
        "GET /v1/models/{name} 200": 1,
        "POST /v1/chat/completions 401": 1,
        "POST /v1/chat/completions 400": 1,
        "GET /v1/chat/completions 405": 1,
        "HEAD /health 200": 1,
        "other other 404": 3,
    }


async def test_metrics_without_an_alias(start_server: StartServer) -> None:
    async with start_server(endless(), metrics_alias_prefix="") as server:
        assert not [name for name, _ in await samples(server) if name.startswith("vllm")]
