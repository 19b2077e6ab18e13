"""Times what makes grammars of schemas, and llguidance's compiling and masks beside xgrammar's.

    python bench/grammars.py --model PATH           a model's folder or .gguf file: its vocabulary
    python bench/grammars.py --model PATH --schemas 200 --bytes 10000

The first part is a request's way through the grammar process (text/grammars.py): each schema once,
then again. The second compiles the same schemas with the model's vocabulary, on one thread, and
makes the mask of each token of an answer. xgrammar is measured where it is installed; it needs
torch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import llguidance

from minisgl.sampling_params import StructuredOutputsParams
from minisgl.text.grammars import Grammars, form_source
from minisgl.tokenizer import load_tokenizer

NUM_ANSWERS = 20  # whose masks are timed


def schema_of(seed: int, num_bytes: int) -> dict[str, Any]:
    """A schema of about so many bytes, and no other like it."""
    rng = random.Random(seed)
    kinds: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string", "maxLength": rng.randint(5, 50)},
        lambda: {"type": "integer", "minimum": 0, "maximum": rng.randint(10, 10**6)},
        lambda: {"enum": [f"value_{rng.randint(0, 999)}" for _ in range(4)]},
        lambda: {"type": "array", "items": {"type": "number"}, "maxItems": rng.randint(1, 9)},
        lambda: {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    ]
    properties: dict[str, Any] = {}
    while len(json.dumps(properties)) < num_bytes:
        properties[f"field_{len(properties)}_{rng.randint(0, 99)}"] = rng.choice(kinds)()
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def answer_of(schema: dict[str, Any]) -> str:
    """An answer, compact."""
    values: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        if "enum" in field:
            values[name] = field["enum"][0]
        elif "anyOf" in field:
            values[name] = None
        else:
            values[name] = {"string": "text", "integer": 7, "array": [1.5]}[field["type"]]
    return json.dumps(values, separators=(",", ":"))


def shown(name: str, seconds: Sequence[float]) -> None:
    ranked = sorted(seconds)
    p99 = ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))]
    middle, longest = statistics.median(ranked), ranked[-1]
    print(
        f"{name:38} p50 {middle * 1e3:8.3f} ms, p99 {p99 * 1e3:8.3f} ms, most {longest * 1e3:.3f}"
    )


async def time_process(schemas: list[dict[str, Any]]) -> None:
    grammars = Grammars()
    forms = [form_source(StructuredOutputsParams(json=schema)) for schema in schemas]
    try:
        start = time.perf_counter()
        await grammars.grammar(form_source(StructuredOutputsParams(json_object=True)))
        shown("the first form starts the process", [time.perf_counter() - start])
        for name in ("a form", "again"):
            seconds = []
            for form in forms:
                start = time.perf_counter()
                await grammars.grammar(form)
                seconds.append(time.perf_counter() - start)
            shown(name, seconds)
    finally:
        await grammars.close()


class Words:
    """A model's vocabulary, as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens = tokens = tokenizer.grammar_tokens()
        self.eos_token_id = tokenizer.eos_token_ids[0]
        self.special_token_ids = [
            index for index, token in enumerate(tokens) if token[:1] == b"\xff"
        ]

    def __call__(self, text: str | bytes) -> list[int]:
        text = text.decode() if isinstance(text, bytes) else text
        return list(self._tokenizer.encode(text, add_special_tokens=False))


def time_llguidance(tokenizer: Any, schemas: list[dict[str, Any]]) -> None:
    vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Words(tokenizer)))
    seconds, masks = [], []
    for index, schema in enumerate(schemas):
        start = time.perf_counter()
        grammar = llguidance.LLMatcher.grammar_from_json_schema(
            schema, overrides={"whitespace_flexible": False}
        )
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        matcher.compute_bitmask()
        seconds.append(time.perf_counter() - start)
        if index < NUM_ANSWERS:
            for token in tokenizer.encode(answer_of(schema), add_special_tokens=False):
                start = time.perf_counter()
                matcher.compute_bitmask()
                masks.append(time.perf_counter() - start)
                assert matcher.consume_token(token), matcher.get_error()
    shown("llguidance, compiled with a first mask", seconds)
    shown("llguidance, a mask", masks)


def time_xgrammar(tokenizer: Any, schemas: list[dict[str, Any]]) -> None:
    try:
        import xgrammar
    except ImportError as error:
        print(f"xgrammar is not measured: {error}")
        return
    tokens = [b"" if token[:1] == b"\xff" else token for token in tokenizer.grammar_tokens()]
    vocabulary = xgrammar.TokenizerInfo(tokens, stop_token_ids=tokenizer.eos_token_ids)
    compiler = xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_enabled=False)
    bitmask = xgrammar.allocate_token_bitmask(1, vocabulary.vocab_size)
    seconds, masks = [], []
    for index, schema in enumerate(schemas):
        start = time.perf_counter()
        compiled = compiler.compile_json_schema(
            json.dumps(schema), any_whitespace=False, separators=(",", ":"), indent=None
        )
        matcher = xgrammar.GrammarMatcher(compiled)
        matcher.fill_next_token_bitmask(bitmask)
        seconds.append(time.perf_counter() - start)
        if index < NUM_ANSWERS:
            for token in tokenizer.encode(answer_of(schema), add_special_tokens=False):
                start = time.perf_counter()
                matcher.fill_next_token_bitmask(bitmask)
                masks.append(time.perf_counter() - start)
                assert matcher.accept_token(token)
    shown("xgrammar, compiled with a first mask", seconds)
    shown("xgrammar, a mask", masks)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--schemas", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=10_000)
    args = parser.parse_args()
    schemas = [schema_of(seed, args.bytes) for seed in range(args.schemas)]
    tokenizer = load_tokenizer(args.model)
    asyncio.run(time_process(schemas))
    time_llguidance(tokenizer, schemas)
    time_xgrammar(tokenizer, schemas)


if __name__ == "__main__":
    main()
