"""A stand-in for minisgl._native: an engine without a thread that says what a script tells it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

EOS = 0
VOCAB_SIZE = 450
MAX_MODEL_LEN = 200

# From a submitted request to the tokens that the "model" would make.
Script = Callable[[dict[str, Any]], Sequence[int]]


class InputError(ValueError):
    pass


class FakeEngine:
    """Each take_outputs() is a step in which every live request gets one token."""

    def __init__(self, script: Script, options: dict[str, Any]) -> None:
        self.options = options
        self.info = {
            "family": "fake",
            "weight_dtype": "f32",
            "weight_bytes": 1,
            "vocab_size": VOCAB_SIZE,
            "num_layers": 1,
            "hidden_size": 1,
            "max_position": MAX_MODEL_LEN,
            "eos_token_ids": [EOS],
            "max_model_len": options["max_model_len"] or MAX_MODEL_LEN,
            "max_running": options.get("max_running", 256),
        }
        self.script = script
        self.requests: list[dict[str, Any]] = []  # all that were submitted
        self.aborted: list[int] = []
        self.most_live = 0
        self.started = self.stopped = False
        self.failed = ""
        self.on_take: Callable[[], None] = lambda: None
        self._event = os.eventfd(0, os.EFD_NONBLOCK)
        self._live: dict[int, tuple[dict[str, Any], list[int], int]] = {}
        self._ends: list[tuple[Any, ...]] = []

    def start(self) -> None:
        self.started = True

    def stop(self) -> None:
        self.stopped = True

    def submit(self, request: dict[str, Any]) -> None:
        assert self.started
        assert not self.stopped
        self.requests.append(request)
        self._live[request["id"]] = (request, list(self.script(request)), 0)
        self.most_live = max(self.most_live, len(self._live))
        os.eventfd_write(self._event, 1)

    def refuse(self, request_id: int, code: str, reason: str) -> None:
        """The next step ends this request with an error."""
        self._live.pop(request_id)
        self._ends.append((request_id, [], "error", code, reason, None, None, None))

    def abort(self, request_id: int) -> None:
        if self._live.pop(request_id, None):
            self.aborted.append(request_id)
            self._ends.append((request_id, [], "abort", "", "", None, None, (0.0, 0.0, 0.0)))
            os.eventfd_write(self._event, 1)

    def event_fd(self) -> int:
        return self._event

    def take_outputs(self) -> list[tuple[Any, ...]]:
        self.on_take()
        os.eventfd_read(self._event)
        outputs, self._ends = self._ends, []
        for request_id, (request, tokens, made) in list(self._live.items()):
            outputs.append(self._step(request_id, request, tokens, made))
        if self._live:
            os.eventfd_write(self._event, 1)
        return outputs

    def _step(
        self, request_id: int, request: dict[str, Any], tokens: list[int], made: int
    ) -> tuple[Any, ...]:
        token = tokens[made % len(tokens)]
        made += 1
        ends = [] if request["ignore_eos"] else [EOS]
        finish = "stop" if token in [*ends, *request["stop_token_ids"]] else ""
        finish = finish or ("length" if made == request["max_tokens"] else "")
        if finish:
            del self._live[request_id]
        else:
            self._live[request_id] = (request, tokens, made)
        logprobs = prompt_logprobs = None
        if request.get("logprobs") is not None:
            logprobs = [(-0.5, [(token, -0.5)] * request["logprobs"])]
        if request.get("prompt_logprobs") is not None and made == 1:
            prompt_logprobs = [
                (token, None if index == 0 else -1.0, [])
                for index, token in enumerate(request["prompt"])
            ]
        timings = (0.0, 0.0, 0.0) if finish else None
        return (request_id, [token], finish, "", "", logprobs, prompt_logprobs, timings)

    def stats(self) -> dict[str, int]:
        return {}

    def failure(self) -> str:
        return self.failed


class FakeNative(ModuleType):
    """The module. `engine` is the one that was made last."""

    InputError = InputError
    build_info = staticmethod(lambda: {"cuda": ""})

    def __init__(self, script: Script) -> None:
        super().__init__("minisgl._native")
        self.script = script
        self.engine: FakeEngine | None = None
        self.error: Exception | None = None

    def Engine(self, **options: Any) -> FakeEngine:  # noqa: N802 (it stands for a class)
        if self.error is not None:
            raise self.error
        options.pop("progress")("weights", 1, 1)
        self.engine = FakeEngine(self.script, options)
        return self.engine
