"""Decoding of answers that a JSON schema of 20 fields holds, over decoding without one, in one
process, taking turns.

    python bench/constrained.py --batch 16                                     the default model
    python bench/constrained.py --batch 64 --device cuda --shape qwen3-0.6b    dummy weights
    python bench/constrained.py --batch 1 --keys 32                            one, with long keys

The same prompts are decoded with all of them constrained, then with one constrained, of which only
the others count, until the last of them has ended. Each pass stands between two without
constraints, so that the ratio is one of neighbours in time. Most of an answer's 512 tokens are
those of 19 short fields of all kinds; the last field, a string of 4000 characters or more, lets no
answer end early. As in measure.py, a pass that makes one token per prompt is taken off: compiling,
prefill and the first mask. Medians of the rounds.

What the schema leaves no choice about, above all the names of fields, is forced: the longer they
are (--keys), the fewer tokens are drawn.

A shape's vocabulary (shapes.py) has the model's size, and words of up to four letters in place of
the model's: masks are as large, and most tokens are allowed in a string, as usual.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import msgspec
from shapes import add_model_arguments, model_options
from workloads import Workload, make_workload

from minisgl import SamplingParams
from minisgl.ipc.messages import EngineOptions
from minisgl.offline.grammars import with_grammar
from minisgl.offline.local_model import LocalModel, open_local_model
from minisgl.sampling_params import StructuredOutputsParams

NUM_FIELDS = 20
LONG_STRING = 4000  # characters


def schema(key_length: int) -> dict[str, Any]:
    """Short fields of all kinds in turn, and a last one that is longer than any answer; their names
    have so many letters at least.
    """
    kinds: list[dict[str, Any]] = [
        {"type": "string", "minLength": 8, "maxLength": 24},
        {"type": "integer", "minimum": 0, "maximum": 10**6},
        {"enum": ["draft", "published", "withdrawn"]},
        {"type": "boolean"},
        {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 8},
        {"anyOf": [{"type": "null"}, {"type": "string", "format": "date"}]},
    ]
    keys = [f"field_{i}".ljust(key_length, "x") for i in range(NUM_FIELDS)]
    properties = {key: kinds[i % len(kinds)] for i, key in enumerate(keys)}
    properties[keys[-1]] = {"type": "string", "minLength": LONG_STRING}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Decoder:
    """A model, and the prompts that are decoded in each way."""

    model: LocalModel
    workload: Workload
    free: SamplingParams
    held: SamplingParams

    def rate(self, num_held: int, counted: Sequence[int]) -> float:
        """Tokens a second of the counted prompts from the second token on, until the last of them
        ended, while the first `num_held` prompts are constrained.

        Raises SystemExit when an answer isn't as long as it should be.
        """
        firsts = self.model.run(self._ends(num_held, 1))
        whole = self.model.run(self._ends(num_held, self.free.max_tokens))
        seconds = max(whole[i] for i in counted) - max(firsts[i] for i in counted)
        return len(counted) * (self.free.max_tokens - 1) / seconds

    async def _ends(self, num_held: int, max_tokens: int) -> list[float]:
        """Seconds until each answer ended."""
        start = time.perf_counter()

        async def end(index: int, prompt: list[int]) -> float:
            params = msgspec.structs.replace(
                self.held if index < num_held else self.free, max_tokens=max_tokens, seed=index
            )
            async with contextlib.aclosing(self.model.answer(prompt, params, whole=True)) as pieces:
                num_tokens = sum([len(piece.token_ids) async for piece in pieces])
            if num_tokens != max_tokens:
                raise SystemExit(f"an answer ended after {num_tokens} of {max_tokens} tokens")
            return time.perf_counter() - start

        answers = (end(index, prompt) for index, prompt in enumerate(self.workload.prompts))
        return list(await asyncio.gather(*answers))


def open_decoder(args: argparse.Namespace) -> Decoder:
    workload = make_workload(f"decode-b{args.batch}")
    model, load_format = model_options(args)
    longest = max(map(len, workload.prompts)) + args.tokens

    def options(path: str) -> EngineOptions:
        return EngineOptions(
            model_path=path,
            load_format=load_format,
            device=args.device,
            num_threads=args.threads,
            max_model_len=longest,
            disable_prefix_cache=True,
        )

    opened = open_local_model(model, options, show_progress=False, weights=load_format != "dummy")
    free = SamplingParams(max_tokens=args.tokens, temperature=args.temperature, ignore_eos=True)
    form = StructuredOutputsParams(json=schema(args.keys))
    asked = msgspec.structs.replace(free, structured_outputs=form)
    return Decoder(opened, workload, free, opened.run(with_grammar(opened.text, asked)))


def compare(decoder: Decoder, name: str, num_held: int, counted: range, rounds: int) -> None:
    """Prints the rate of the counted prompts beside the same ones' without constraints."""
    for held in (0, num_held):  # kernels are chosen, what grammars need is loaded
        decoder.rate(held, counted)
    free = [decoder.rate(0, counted)]
    held_rates = []
    for _ in range(rounds):
        held_rates.append(decoder.rate(num_held, counted))
        free.append(decoder.rate(0, counted))
    ratios = sorted(
        2 * rate / (before + after)
        for rate, (before, after) in zip(held_rates, pairwise(free), strict=True)
    )
    print(
        f"{name}: {statistics.median(held_rates):.1f} tok/s over {statistics.median(free):.1f} "
        f"unconstrained: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--batch", type=int, default=16, help="prompts at once")
    parser.add_argument("--keys", type=int, default=0, help="letters of a field's name, at least")
    parser.add_argument("--tokens", type=int, default=512, help="per answer")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    decoder, size = open_decoder(args), args.batch
    print(f"{size} prompts, {args.tokens} tokens each, {args.rounds} rounds")
    with contextlib.closing(decoder.model):
        compare(decoder, f"all {size} constrained", size, range(size), args.rounds)
        if size > 1:
            compare(decoder, f"1 constrained, the other {size - 1}", 1, range(1, size), args.rounds)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
