"""A server whose model comes from a hub: found at its start, and replaced by another revision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.python.launch.servers import ServerProcess, Stream, until
from tests.python.model_files.small_hub import SmallHub, files_of, serving_hub
from tests.python.ports import free_port
from tests.python.running.conftest import PROGRAM
from tests.python.running.test_ranks import text_of
from tests.python.running.test_replicas import KEY, changed, events_of, serving, shown
from tests.python.running.tiny_model import make_tiny_model

TOKENS = 1000
REPO = "org/tiny"


@pytest.fixture
def hub() -> Iterator[SmallHub]:
    with serving_hub() as hub:
        yield hub


def start(hub: SmallHub, folder: Path, *flags: str) -> ServerProcess:
    """A server of the repository, with a cache of its own in the folder."""
    return ServerProcess(
        REPO,
        folder / "server",
        *("--device", "cpu", "--kv-cache-tokens", "16K", "--admin-api-key", KEY, *flags),
        program=PROGRAM,
        environment={
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(folder / "cache"),
            "MINISGL_DIST_SECRET": "known to two hosts",
        },
    )


def texts_now(port: int) -> list[str]:
    streams = [Stream(port, [5 + number, 6, 7], TOKENS, ignore_eos=True) for number in range(4)]
    return [text_of(stream) for stream in streams]


def replaced(port: int, **named: str) -> dict[str, Any]:
    """The last event of a roll."""
    return changed(port, "POST", "/replace", named)


def test_revisions_of_a_hub_take_each_others_place(
    hub: SmallHub, tiny_model: Path, tmp_path: Path
) -> None:
    one = hub.push(REPO, files_of(tiny_model), "v1", "main")
    two = hub.push(REPO, files_of(make_tiny_model(tmp_path / "two", seed=1)), "v2", "main")
    three = hub.push(REPO, files_of(make_tiny_model(tmp_path / "three", seed=2)), "v3")
    server = start(hub, tmp_path, "--revision", "v1", "--replicas", "2")
    port = server.wait_ready()
    until(lambda: serving(port) == 2)
    assert {(each["model"], each["revision"]) for each in shown(port)} == {(REPO, one)}
    old = texts_now(port)

    # Refused, and nothing has changed.
    nothing = "; nothing has changed"
    assert replaced(port, revision="v9")["reason"] == f"{REPO} has no revision 'v9'" + nothing
    hub.broken_at, hub.breaks = 1000, 10**6
    reason = replaced(port, revision="v3")["reason"]
    assert reason.startswith(
        f"{REPO} at revision 'v3' can't be downloaded from {hub.address}: peer"
    )
    assert reason.endswith(nothing)
    hub.breaks = 0
    hub.ill = True
    answered = f"Hugging Face answered 500 for {REPO} at revision 'v2'; try again later"
    assert replaced(port, revision="v2")["reason"] == answered + nothing
    hub.ill = False
    assert texts_now(port) == old

    # Under streams; without a revision the hub's main branch is meant. A download that breaks off
    # goes on.
    hub.broken_at, hub.breaks = 1000, 1
    streams = [Stream(port, [5 + number, 6, 7], TOKENS, ignore_eos=True) for number in range(4)]
    *events, last = events_of(port, "POST", "/replace", {})
    phases = [
        event["phase"] for event in events if "phase" in event and event["state"] == "searching"
    ]
    assert phases
    assert all(re.fullmatch("downloading [0-9]+%", phase) for phase in phases)
    assert (last["state"], last["model"], last["revision"]) == ("replaced", REPO, two)
    new = texts_now(port)
    for stream, before, after in zip(streams, old, new, strict=True):
        assert text_of(stream) in (before, after)
    assert not set(old) & set(new)
    assert {(each["model"], each["revision"]) for each in shown(port)} == {(REPO, two)}

    # Back to the first, which is there; then to one that has come in part.
    sent = len(hub.sent)
    assert replaced(port, revision=one)["revision"] == one
    assert texts_now(port) == old
    assert len(hub.sent) == sent
    assert replaced(port, revision="v3")["revision"] == three
    assert hub.sent[sent:] == ["model.safetensors:0"]
    server.end_in_order()

    # What was found by its name, here main, starts without a network.
    hub.address = "http://127.0.0.1:9"
    server = start(hub, tmp_path)
    assert texts_now(server.wait_ready()) == new
    server.end_in_order()


def test_a_host_that_joins_has_the_commit_that_is_served(
    hub: SmallHub, tiny_model: Path, tmp_path: Path
) -> None:
    """Though the branch means another one by then."""
    address = f"127.0.0.1:{free_port()}"
    hub.push(REPO, files_of(tiny_model), "main")
    server = start(hub, tmp_path, "--dist-init-addr", address)
    port = server.wait_ready()
    expected = texts_now(port)
    hub.push(REPO, files_of(make_tiny_model(tmp_path / "two", seed=1)), "main")
    guest = start(hub, tmp_path, "--join", address)
    server.wait_for_line(r"host \d+ is there")
    assert changed(port, "POST")["state"] == "ready"
    assert len(guest.ranks()) == 1
    assert changed(port, "DELETE", "/0")["state"] == "removed"
    assert texts_now(port) == expected
    server.end_in_order()
    assert guest.wait() == 0
    assert "HTTP Request" not in server.output + guest.output  # of the hub's library


def test_a_start_without_its_model_says_why(
    hub: SmallHub, tiny_model: Path, tmp_path: Path
) -> None:
    hub.push(REPO, files_of(tiny_model), "v1")

    def end_of(what: str, *flags: str) -> str:
        server = start(hub, tmp_path / what, *flags)
        assert server.wait() == 1
        return server.lines[-1].removeprefix("minisgl-serve: error: ")

    for what in ("none", "broken", "away"):
        (tmp_path / what).mkdir()
    assert end_of("none", "--revision", "v9") == f"{REPO} has no revision 'v9'."
    hub.broken_at, hub.breaks = 1000, 10**6
    broken = end_of("broken", "--revision", "v1")
    assert broken.startswith(
        f"{REPO} at revision 'v1' can't be downloaded from {hub.address}: peer"
    )
    hub.address = "http://127.0.0.1:9"
    away = end_of("away", "--revision", "v1")
    assert f"{REPO} at revision 'v1' is neither a folder here" in away
    assert "http://127.0.0.1:9 can't be reached" in away
