"""Pages about the server: life, readiness, models, version, metrics, tokens."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from minisgl import __version__
from minisgl.engine.api import ReplicaFigures
from minisgl.ipc.messages import EngineStats
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
    # What Anthropic's clients read.
    assert (card["type"], card["display_name"]) == ("model", MODEL)
    assert (answer["first_id"], answer["last_id"], answer["has_more"]) == (MODEL, "alias", False)


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
            if not re.search("^process_|http_request|api_key", sample.name):
                assert labels.pop("model_name") == MODEL, sample.name
                labels.pop("engine", None)  # what vLLM has, too
            found[sample.name, " ".join(labels.values())] = sample.value
    return found


@pytest.mark.parametrize("prefix", ["minisgl", "vllm"])
async def test_metrics(start_server: StartServer, prefix: str) -> None:
    async with start_server(reply("Hello", delay=0.001)) as server:
        await server.complete("ab", n=2)
        await server.complete("ab", max_tokens=2, stream=True)
        server.engine.on_steps(40, 1)
        server.engine.on_steps(3, 2)
        found = await samples(server)
        expected = {
            "num_requests_running": 3,
            "num_requests_waiting": 2,
            "kv_cache_usage_perc": 0.25,
            "num_preemptions_total": 7,
            "spec_decode_num_drafts_total": 5,
            "spec_decode_num_draft_tokens_total": 20,
            "spec_decode_num_accepted_tokens_total": 12,
            "prefix_cache_queries_total": 400,
            "prefix_cache_hits_total": 360,  # in both tiers
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
            "request_inference_time_seconds_count": 3,
            "request_inference_time_seconds_sum": 0.015,
            "request_params_n_count": 2,
            "request_params_n_sum": 3,
            "request_params_max_tokens_count": 3,
            "request_max_num_generation_tokens_count": 2,
            "request_max_num_generation_tokens_sum": 8,
            "iteration_tokens_total_count": 3,
            "iteration_tokens_total_sum": 46,
        }
        for name, value in expected.items():
            assert found[f"{prefix}:{name}", ""] == pytest.approx(value), name
        assert found[f"{prefix}:request_success_total", "stop"] == 2
        assert found[f"{prefix}:request_success_total", "length"] == 1
        assert found[f"{prefix}:request_generation_tokens_bucket", "4.0"] == 1
        assert found[f"{prefix}:request_generation_tokens_bucket", "+Inf"] == 3
        assert found[f"{prefix}:request_params_max_tokens_bucket", "2.0"] == 1
        assert found[f"{prefix}:num_requests_waiting_by_reason", "capacity"] == 2
        assert found[f"{prefix}:num_requests_waiting_by_reason", "deferred"] == 0


# As vLLM has them (vllm/v1/metrics/loggers.py): type, labels beside the model and the engine, and
# upper bounds for a model of 256 tokens.
VLLM_LENGTHS = "1 2 5 10 20 50 100 200"
VLLM_REQUEST_SECONDS = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"
LIKE_VLLM = {
    "request_max_num_generation_tokens": ("histogram", VLLM_LENGTHS),
    "request_params_max_tokens": ("histogram", VLLM_LENGTHS),
    "request_params_n": ("histogram", "1 2 5 10 20"),
    "request_inference_time_seconds": ("histogram", VLLM_REQUEST_SECONDS),
    "iteration_tokens_total": (
        "histogram",
        "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384",
    ),
    "num_requests_waiting_by_reason": ("gauge", ""),
    "cache_config_info": ("gauge", ""),
}


@pytest.mark.parametrize("prefix", ["minisgl", "vllm"])
async def test_metrics_are_of_the_kind_that_vllm_has(server: Server, prefix: str) -> None:
    text = (await server.http.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, (kind, bounds) in LIKE_VLLM.items():
        family = families[f"{prefix}:{name}"]
        assert family.type == kind, name
        found = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")]
        assert found == ([*map(float, bounds.split()), math.inf] if bounds else []), name
        assert {(s.labels["model_name"], s.labels["engine"]) for s in family.samples} == {
            (MODEL, "0")
        }
    (info,) = families[f"{prefix}:cache_config_info"].samples
    assert info.value == 1
    expected = {"block_size": "16", "num_gpu_blocks": "100", "cache_dtype": "bf16"}
    assert expected.items() <= info.labels.items()


async def test_what_vllm_has_too_is_documented(server: Server) -> None:
    listed = (Path(__file__).parents[3] / "docs" / "METRICS.md").read_text()
    names = set(re.findall(r"# TYPE vllm:(\w+) ", (await server.http.get("/metrics")).text))
    assert len(names) > 20
    assert names - set(re.findall(r"`(\w+)`", listed)) == set()


async def test_of_several_replicas_it_is_said_how_many_serve(server: Server) -> None:
    stats = EngineStats(num_running=3, pages_total=100, pages_free=75, generated_tokens=9)
    up = ReplicaFigures(0, "ready", "", "CPU", "a/model", "0a1b", 4, 50, 0, 2, stats, {"prefix": 6})
    server.engine.replicas = (up, dataclasses.replace(up, number=1, state="restarting"))
    for page in ("/health", "/ready"):
        answer = (await server.http.get(page)).json()
        assert answer["replicas"] == {"ready": 1, "all": 2}
    found = await samples(server)
    assert (found["minisgl:replica_up", "0"], found["minisgl:replica_up", "1"]) == (1, 0)
    assert found["minisgl:replica_num_streams", "1"] == 4
    assert found["minisgl:replica_decisions_total", "prefix 0"] == 6
    assert found["minisgl:replica_model_info", "a/model 0 0a1b"] == 1
    assert found["minisgl:replica_kv_cache_usage_perc", "0"] == 0.25
    assert found["minisgl:replica_restarts_total", "0"] == 2
    assert found["minisgl:replica_generation_tokens_total", "1"] == 9


async def test_metrics_before_the_model_is_loaded(server: Server) -> None:
    server.engine.state = "starting"
    text = (await server.http.get("/metrics")).text
    assert "cache_config_info" not in text
    assert "minisgl:request_params_max_tokens_bucket" in text


async def test_health_says_what_a_start_is_at(server: Server) -> None:
    assert (await server.http.get("/health")).json() == {"status": "ok", "engine": "ready"}
    server.engine.state, server.engine.phase = "restarting", "waiting for hosts [1]"
    assert (await server.http.get("/health")).json() == {
        "status": "ok",
        "engine": "restarting",
        "phase": "waiting for hosts [1]",
    }


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


async def test_metrics_of_the_prefix_cache(server: Server) -> None:
    found = await samples(server)
    for name, values in (
        ("prefix_cache_pages", {"device": 40, "host": 90}),
        ("prefix_cache_queried_tokens_total", {"device": 400, "host": 100}),
        ("prefix_cache_hit_tokens_total", {"device": 300, "host": 60}),
        ("prefix_cache_evicted_tokens_total", {"device": 160, "host": 32}),
        ("prefix_cache_copied_bytes_total", {"host": 5000, "device": 3000}),
    ):
        for value, number in values.items():
            assert found[f"minisgl:{name}", value] == number


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


async def test_metrics_of_http_as_vllm_has_them(start_server: StartServer) -> None:
    async with start_server(reply("Hello"), api_key=("a", "b")) as server:
        for key in ("b", "b", "a", "x"):
            await server.http.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        await server.http.head("/health")
        found = await samples(server)
        text = (await server.http.get("/metrics")).text
    assert found["http_requests_total", "/v1/models GET 2xx"] == 3
    assert found["http_requests_total", "/v1/models GET 4xx"] == 1
    assert found["http_request_duration_seconds_count", "/v1/models GET"] == 4
    assert found["http_request_duration_seconds_bucket", "/v1/models +Inf GET"] == 4
    assert 0 < found["http_request_duration_seconds_sum", "/health HEAD"] < 5
    # Keys by their number alone.
    keys = {
        labels: n for (name, labels), n in found.items() if "api_key" in name and "_total" in name
    }
    assert keys == {"0": 1, "1": 2}
    assert 'handler="/v1/models"' in text


async def test_metrics_without_an_alias(start_server: StartServer) -> None:
    async with start_server(endless(), metrics_alias_prefix="") as server:
        assert not [name for name, _ in await samples(server) if name.startswith("vllm")]
