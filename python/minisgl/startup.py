"""A start: what the engine is told, and what the screen says meanwhile: phases, their times, what
was chosen and why.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence

from minisgl.config import EngineSettings, ServerArgs
from minisgl.environment import default_cache_dir
from minisgl.ipc.messages import EngineInfo, EngineOptions, PhaseReport

PROGRESS_SECONDS = 2.0  # between two lines about the same phase

logger = logging.getLogger(__name__)


def engine_options(args: ServerArgs, model_path: str) -> EngineOptions:
    """The engine's part of the settings."""
    settings = {one.name: getattr(args, one.name) for one in dataclasses.fields(EngineSettings)}
    settings["enable_lora"] |= bool(args.lora)
    return EngineOptions(
        model_path=model_path, cache_dir=str(default_cache_dir() or ""), **settings
    )


class PhaseLog:
    """One line a phase with its seconds; for long ones a line of progress now and then. All begin
    with `prefix`.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._spoke = time.monotonic()

    def report(self, report: PhaseReport) -> None:
        """Writes the line of a phase that has ended, or of one that goes on for long."""
        now = time.monotonic()
        if report.finished:
            logger.info("%s%s: %.2f s", self._prefix, report.phase, report.seconds)
        elif report.total and now - self._spoke >= PROGRESS_SECONDS:
            share = 100 * report.done // report.total
            logger.info("%s%s: %d%%", self._prefix, report.phase, share)
        else:
            return
        self._spoke = now


def describe_engine(args: ServerArgs, ranks: Sequence[EngineInfo]) -> list[str]:
    """Lines about what the engine runs with, each with the flag that changes it."""

    info = ranks[0]

    def why(asked: object, otherwise: str, flag: str) -> str:
        return f"({'asked for' if asked else otherwise}; {flag})"

    by = ", divided by ranks" if len(ranks) > 1 else ""
    by += ", divided by replicas" if args.replicas > 1 else ""
    cores = f"cores allowed to this process{by}"
    num_threads = counted(info.num_threads, "thread", "threads")
    threads = why(args.num_threads, cores, "--threads")
    kv_dtype = why(args.kv_dtype != "auto", "follows the weights", "--kv-dtype")
    kv_tokens = why(args.kv_cache_tokens, "default, as far as memory allows", "--kv-cache-tokens")
    length = why(
        args.max_model_len, "the model's, as far as the KV cache allows", "--max-model-len"
    )
    each = "each replica has " if args.replicas > 1 else ""
    lines = [
        *_describe_ranks(args, ranks),
        f"weights: {info.family} {info.weight_dtype}, {_size(info.weight_bytes)}",
        f"device: {info.device} ({_why_device(args, info)}; --device)",
        f"processor: {num_threads} {threads}, {info.isa} kernels (the best it has)",
        f"KV cache: {each}{info.kv_cache_tokens} tokens {kv_tokens} in {info.kv_dtype} {kv_dtype}, "
        f"{_size(info.kv_cache_bytes)}",
        _describe_prefix_cache(info),
        f"longest request: {info.max_model_len} tokens, prompt and output {length}",
        f"batch: up to {info.max_running} requests (--max-running), {info.max_penalized} of them "
        f"with penalties (--max-penalized, {_size(4 * info.max_penalized * info.vocab_size)}), "
        f"{info.max_batch_tokens} tokens per step (--max-batch-tokens)",
    ]
    if info.stacked_rows:
        steps = counted(info.stacked_rows, "sequence", "sequences")
        lines.append(f"decode steps: all layers in one kernel for up to {steps}")
    if args.deterministic:
        lines.append(
            "answers: a request's tokens depend on nothing but itself, bit for bit; prefill and "
            "small batches are slower on GPUs for it (--deterministic)"
        )
    if info.free_bytes:
        lines.append(
            f"GPU memory: weights {_size(info.weight_bytes)}, workspace "
            f"{_size(info.workspace_bytes)}, graphs {_size(info.graph_bytes)}, KV cache "
            f"{_size(info.kv_cache_bytes)}, {_size(info.free_bytes)} left free (--memory-fraction)"
        )
    return lines


def _describe_prefix_cache(info: EngineInfo) -> str:
    if not info.prefix_cache:
        return "prefix cache: none (--disable-prefix-cache)"
    line = (
        f"prefix cache: all of the KV cache that no request needs, up to {info.kv_cache_tokens} "
        f"tokens in pages of {info.page_size} (--disable-prefix-cache)"
    )
    if info.host_tokens:
        line += (
            f"; {info.host_tokens} tokens in {_size(info.host_bytes)} of the host's memory, from "
            f"there at {info.host_bytes_per_second / 1e9:.1f} GB/s (--kv-host-bytes)"
        )
    return line


def _why_device(args: ServerArgs, info: EngineInfo) -> str:
    if args.device != "auto":
        return "asked for"
    if info.device.startswith("CPU"):
        return "auto, and there is no GPU that this build can use"
    return "auto, and there is a GPU"


def _describe_ranks(args: ServerArgs, ranks: Sequence[EngineInfo]) -> list[str]:
    if len(ranks) == 1:
        return []
    cores = "; ".join(info.cores or "any" for info in ranks)
    few = "" if ranks[0].cores else " (fewer cores than ranks are allowed to this process)"
    return [
        f"ranks: {len(ranks)} (--tp), each with {_size(ranks[0].weight_bytes)} of the weights",
        f"{ranks[0].comm} (--comm {args.comm})",
        f"cores by rank: {cores}{few}",
    ]


def counted(number: int, one: str, several: str) -> str:
    """ "1 process", "2 processes"."""
    return f"{number} {one if number == 1 else several}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
