"""The project's workloads by name: what is asked of an engine, as token ids and output lengths.

decode-b{N}    N prompts of 128 tokens, 256 new tokens each, EOS ignored, greedy
decode-b{N}x{L}  N prompts of L tokens, 64 new tokens each, EOS ignored, greedy
serve-{N}      the same, asked for by N concurrent SSE clients
offline-256    seed 0; 256 prompts of 100 to 1024 ids, then 100 to 1024 new tokens each,
                   temperature 0.6
prefill-PxL    P prompts of L tokens, one new token each
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    name: str
    prompts: list[list[int]]
    max_tokens: list[int]
    temperature: float

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)

    @property
    def output_tokens(self) -> int:
        return sum(self.max_tokens)


def _random_prompts(rng: random.Random, lengths: list[int]) -> list[list[int]]:
    return [[rng.randint(0, 10000) for _ in range(length)] for length in lengths]


def make_workload(name: str) -> Workload:
    """The workload called `name`; ValueError for a name that isn't one."""
    rng = random.Random(0)
    if name == "offline-256":
        prompts = [
            [rng.randint(0, 10000) for _ in range(rng.randint(100, 1024))] for _ in range(256)
        ]
        return Workload(name, prompts, [rng.randint(100, 1024) for _ in range(256)], 0.6)
    if match := re.fullmatch(r"(?:decode-b|serve-)(\d+)", name):
        batch = int(match[1])
        return Workload(name, _random_prompts(rng, [128] * batch), [256] * batch, 0.0)
    if match := re.fullmatch(r"decode-b(\d+)x(\d+)", name):
        batch, length = int(match[1]), int(match[2])
        return Workload(name, _random_prompts(rng, [length] * batch), [64] * batch, 0.0)
    if match := re.fullmatch(r"prefill-(\d+)x(\d+)", name):
        batch, length = int(match[1]), int(match[2])
        return Workload(name, _random_prompts(rng, [length] * batch), [1] * batch, 0.0)
    raise ValueError(
        f"unknown workload {name!r}: use decode-bN, decode-bNxL, serve-N, "
        "prefill-PxL or offline-256"
    )
