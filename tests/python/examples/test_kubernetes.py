"""The manifests of examples/kubernetes, held to what the project has: flags, variables, paths,
ports, metrics and times. No cluster is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from minisgl.config import ServerArgs
from minisgl.flags import parse_args
from tests.python.server.conftest import running

FOLDER = Path(__file__).resolve().parents[3] / "examples" / "kubernetes"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
END_SECONDS = 10  # to end ranks and connections after the last stream
MODEL_SERVER_PROTOCOL = {  # what an endpoint picker reads, as it knows it by default
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:cache_config_info",
}


def documents() -> list[dict[str, Any]]:
    return [one for path in MANIFESTS for one in yaml.safe_load_all(path.read_text())]


def of_kind(*kinds: str) -> list[dict[str, Any]]:
    found = [one for one in documents() if one["kind"] in kinds]
    assert found
    return found


def pods() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pod specifications, and their one container."""
    for workload in of_kind("Deployment", "StatefulSet"):
        spec = workload["spec"]["template"]["spec"]
        (container,) = spec["containers"]
        yield spec, container


def arguments_of(container: dict[str, Any]) -> ServerArgs:
    """What the server makes of a container's command line and environment."""
    assert container["command"] == ["minisgl-serve"]
    values = {one["name"]: one.get("value", "") for one in container["env"]}
    for name in values:
        assert name.startswith(("MINISGL_", "HF_", "XDG_", "HOST_")), name
    stand_ins = {"MINISGL_NODE_RANK": "1", "MINISGL_DIST_SECRET": "s" * 32}
    environment = {name: stand_ins.get(name, text or "a key") for name, text in values.items()}
    expand = re.compile(r"\$\((\w+)\)")
    return parse_args(
        [expand.sub(lambda match: values[match[1]], text) for text in container["args"]],
        environment,
    )


def test_every_manifest_is_in_the_table() -> None:
    assert len(MANIFESTS) >= 5
    readme = (FOLDER / "README.md").read_text()
    for path in MANIFESTS:
        assert f"| `{path.name}` |" in readme


def test_flags_and_variables_are_the_servers() -> None:
    large = []
    for _, container in pods():
        args = arguments_of(container)
        assert args.port == container["ports"][0]["containerPort"]
        assert args.host == "0.0.0.0"
        large.append(args)
        named = {f"MINISGL_{name.upper()}" for name in vars(args)}
        given = {one["name"] for one in container["env"]}
        assert {name for name in given if name.startswith("MINISGL_")} <= named
    assert large[0].api_key
    assert large[0].admin_api_key
    assert (large[1].tp, large[1].nnodes, large[1].node_rank) == (16, 2, 1)


def test_a_pod_has_the_time_that_its_end_takes() -> None:
    for spec, container in pods():
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        waited = float(command[command.index("sleep") + 1])
        needed = waited + arguments_of(container).drain_timeout + END_SECONDS
        assert spec["terminationGracePeriodSeconds"] >= needed


def test_ports_and_labels_lead_from_one_to_the_other() -> None:
    by_label: dict[str, set[Any]] = {}
    for workload in of_kind("Deployment", "StatefulSet"):
        template = workload["spec"]["template"]
        labels = template["metadata"]["labels"]
        assert workload["spec"]["selector"]["matchLabels"] == labels
        (container,) = template["spec"]["containers"]
        ports = {value for port in container["ports"] for value in port.values()}
        by_label[labels["app"]] = ports
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in template["spec"]["volumes"]}
    for service in of_kind("Service"):
        spec = service["spec"]
        for port in spec["ports"]:
            assert port.get("targetPort", port["port"]) in by_label[spec["selector"]["app"]]
    for pool in of_kind("InferencePool"):
        spec = pool["spec"]
        targets = {port["number"] for port in spec["targetPorts"]}
        assert targets <= by_label[spec["selector"]["matchLabels"]["app"]]
    for monitor in of_kind("PodMonitor"):
        spec = monitor["spec"]
        ports = {endpoint["port"] for endpoint in spec["podMetricsEndpoints"]}
        assert ports <= by_label[spec["selector"]["matchLabels"]["app"]]


@pytest.fixture
async def answers() -> dict[str, httpx.Response]:
    """What a server with keys says at each path that a manifest names, to whoever has none."""
    text = "\n".join(path.read_text() for path in MANIFESTS)
    paths = {f"/{name}" for name in re.findall(r"(?:path: |:8000)/(\w+)", text)} - {"/v1"}
    async with running(api_key=("a key",)) as server:
        return {path: await server.http.get(path) for path in paths}


async def test_probes_and_metrics_are_answered_without_a_key(
    answers: dict[str, httpx.Response],
) -> None:
    assert set(answers) == {"/health", "/ready", "/metrics"}
    assert {answer.status_code for answer in answers.values()} == {200}


async def test_metrics_that_endpoint_pickers_read_are_there(
    answers: dict[str, httpx.Response],
) -> None:
    families = text_string_to_metric_families(answers["/metrics"].text)
    gauges = {family.name for family in families if family.type == "gauge"}
    (config,) = of_kind("EndpointPickerConfig")
    engines = config["plugins"][0]["parameters"]["engineConfigs"]
    read = {name for engine in engines for key, name in engine.items() if key.endswith("Spec")}
    assert len(read) == 4
    assert read | MODEL_SERVER_PROTOCOL <= gauges
    readme = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"`(vllm:\w+)`", readme)) == MODEL_SERVER_PROTOCOL
