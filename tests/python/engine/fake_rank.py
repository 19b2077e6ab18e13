"""The real rank program around a fake native engine: counts tokens up instead of computing them.

The model path, or FAKE_RANK_KIND, says how it behaves at start; the first prompt token how it
behaves later. A line of the file FAKE_RANK_NOTES, if there is one, has the path and
--kv-host-bytes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import types
from typing import Any

STEP_SECONDS = 0.005
KILL, FAIL, REFUSE = 900, 901, 902  # prompts: die mid-stream, engine thread fails mid-stream, bad
# Die, stop or make what can't be sent mid-stream, unless the request goes on from another engine.
KILL_ONCE, STOP_ONCE, UNSENDABLE_ONCE = 903, 904, 905
STUCK_ONCE = 906  # the same: a step that never ends
SLOW = 907  # a step mid-stream of SLOW_SECONDS, with progress all the time
SLOW_SECONDS = 4.0
LAST_STEP = 3  # tokens before KILL and FAIL do what they say


class InputError(ValueError):
    pass


class RankFailure(RuntimeError):  # noqa: N818
    pass


class Progress:
    def __init__(self) -> None:
        self.done = 0
        self.working = False


class Engine:
    def __init__(
        self,
        model_path: str,
        *,
        progress: Any,
        counter: Progress,
        max_running: int,
        **options: Any,
    ) -> None:
        if notes := os.environ.get("FAKE_RANK_NOTES"):
            with open(notes, "a") as file:
                print(model_path, options["kv_host_bytes"], file=file)
        kind = os.environ.get("FAKE_RANK_KIND") or model_path.removeprefix("fake:")
        self._counter = counter
        counter.working = True
        progress("weights", 0, 100)
        if kind == "refuse":
            raise InputError("the model file is no good")
        if kind == "die":
            os._exit(7)
        if kind == "hang":
            time.sleep(3600)
        if kind == "slow":
            self._dawdle()
        if kind == "once":  # starts the first time only
            marker = os.environ["FAKE_RANK_MARKER"]
            if os.path.exists(marker):
                raise InputError("it started once already")
            with open(marker, "w") as file:
                file.write("x")
        if kind == "gated":  # from the second start on, loading waits for a file
            if os.path.exists(os.environ["FAKE_RANK_MARKER"]):
                while not os.path.exists(os.environ["FAKE_RANK_GATE"]):
                    time.sleep(0.01)
            open(os.environ["FAKE_RANK_MARKER"], "w").close()
        progress("weights", 100, 100)
        self.info = {
            "vocab_size": 1000,
            "max_model_len": 100_000,
            "max_running": max_running,
            "eos_token_ids": [2],
            "isa": "fake",
            "num_threads": 1,
            "host_bytes": options["kv_host_bytes"],
        }
        self._event_fd = os.eventfd(0) if hasattr(os, "eventfd") else -1
        self._lock = threading.Lock()
        self._live: dict[int, dict[str, Any]] = {}
        self._aborted: set[int] = set()
        self._outputs: list[tuple[Any, ...]] = []
        self._failure = ""
        self._stopping = False
        self._steps = self._generated = 0
        self._pause = ""  # what the step at hand does when it holds no lock
        counter.working = False

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def stop(self) -> None:
        self._stopping = True

    def submit(self, request: dict[str, Any]) -> None:
        if request["prompt"][0] == REFUSE:
            raise TypeError("the fake engine doesn't like this one")
        with self._lock:
            self._live[request["id"]] = dict(request, step=0)
            self._counter.working = True

    def abort(self, request_id: int) -> None:
        with self._lock:
            if request_id in self._live:
                self._aborted.add(request_id)

    def event_fd(self) -> int:
        return self._event_fd

    def take_outputs(self) -> list[tuple[Any, ...]]:
        with self._lock:
            if self._outputs:
                os.eventfd_read(self._event_fd)
            outputs, self._outputs = self._outputs, []
            return outputs

    def stats(self) -> dict[str, int]:
        return {
            "num_running": len(self._live),
            "num_steps": self._steps,
            "generated_tokens": self._generated,
        }

    def failure(self) -> str:
        return self._failure

    def blamed_rank(self) -> int:
        return -1

    def _run(self) -> None:
        while not self._stopping:
            time.sleep(STEP_SECONDS)
            with self._lock:
                self._step()
                if self._failure:
                    return
            if self._pause == "stuck":
                time.sleep(3600)
            if self._pause == "slow":
                self._dawdle()
            self._pause = ""

    def _dawdle(self) -> None:
        for _ in range(20):
            time.sleep(SLOW_SECONDS / 20)
            self._counter.done += 1

    def _step(self) -> None:
        self._steps += 1
        self._counter.done += 1
        self._counter.working = bool(self._live)
        before = len(self._outputs)
        for request_id in list(self._live):
            request = self._live[request_id]
            step = request["step"]
            request["step"] += 1
            if request_id in self._aborted:
                self._finish(request_id, [], "abort")
                continue
            if step == LAST_STEP and request["prompt"][0] == KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            if step == LAST_STEP and not request["num_resumed"]:
                if request["prompt"][0] == KILL_ONCE:
                    os.kill(os.getpid(), signal.SIGKILL)
                if request["prompt"][0] == STOP_ONCE:
                    os.kill(os.getpid(), signal.SIGSTOP)
                if request["prompt"][0] == STUCK_ONCE:
                    self._pause = "stuck"
                if request["prompt"][0] == SLOW:
                    self._pause = "slow"
                if request["prompt"][0] == UNSENDABLE_ONCE:
                    self._outputs.append((request_id, [object()], "", "", "", None, None, None))
                    continue
            if step == LAST_STEP and request["prompt"][0] == FAIL:
                self._failure = "the fake engine broke"
                self._finish(request_id, [], "error", "engine_failure", self._failure)
                break
            token = (request["prompt"][-1] + 1 + step) % 1000
            self._generated += 1
            if request["num_resumed"] + step + 1 == request["max_tokens"]:
                self._finish(request_id, [token], "length")
            else:
                self._outputs.append((request_id, [token], "", "", "", None, None, None))
        if len(self._outputs) > before:
            os.eventfd_write(self._event_fd, 1)

    def _finish(self, request_id: int, tokens: list[int], reason: str, *error: str) -> None:
        code, sentence = error or ("", "")
        del self._live[request_id]
        self._aborted.discard(request_id)
        timings = (0.0, 0.0, 0.0)
        self._outputs.append((request_id, tokens, reason, code, sentence, None, None, timings))


if __name__ == "__main__":
    native = types.ModuleType("minisgl._native")
    native.Engine = Engine  # type: ignore[attr-defined]
    native.InputError = InputError  # type: ignore[attr-defined]
    native.Progress = Progress  # type: ignore[attr-defined]
    native.set_log = lambda least, json, process: None  # type: ignore[attr-defined]
    native.RankFailure = RankFailure  # type: ignore[attr-defined]
    native.divide_even = divmod  # type: ignore[attr-defined]
    native.build_info = lambda: {"cuda": ""}  # type: ignore[attr-defined]
    sys.modules["minisgl._native"] = native

    from minisgl.ipc.child import run_child
    from minisgl.ipc.messages import to_rank_decoder
    from minisgl.rank.main import answer_malformed, main

    run_child(to_rank_decoder, main, answer_malformed)
