"""What a KV cache of each type costs in quality: perplexity of a model on the project's own pages.

    python bench/perplexity.py [--model MODEL] [--kv-dtypes f16 int8]

The text is cut into prompts of --length ids, each predicted token by token in chunks of a step, as
a server reads them. Prints the perplexity with each cache and its ratio to the first one's.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from shapes import add_model_arguments, model_options

from minisgl import LLM, SamplingParams

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "cpp/README.md")


def text_of_the_project() -> str:
    return "\n".join(path.read_text() for page in PAGES for path in sorted(ROOT.glob(page)))


def mean_loss(llm: LLM, prompts: list[list[int]]) -> float:
    """Mean of -log p of every token but the first of each prompt."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0.0)
    losses = [
        -entry.logprob
        for result in llm.generate(prompts, params, use_tqdm=False)
        for entry in result.prompt_logprobs or []
        if entry.logprob is not None
    ]
    assert len(losses) == sum(len(prompt) - 1 for prompt in prompts)
    return math.fsum(losses) / len(losses)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_model_arguments(parser)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--kv-dtypes", nargs="+", default=["f16", "int8"])
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=1 << 20, help="at most so many")
    args = parser.parse_args()

    model, load_format = model_options(args)
    first = 0.0
    for kv_dtype in args.kv_dtypes:
        with LLM(
            model,
            load_format=load_format,
            device=args.device,
            kv_dtype=kv_dtype,
            max_model_len=args.length + 1,
            show_progress=False,
        ) as llm:
            ids = llm.tokenizer.encode(text_of_the_project())[: args.tokens]
            prompts = [ids[i : i + args.length] for i in range(0, len(ids), args.length)]
            perplexity = math.exp(mean_loss(llm, [prompt for prompt in prompts if len(prompt) > 1]))
            info = llm.info
        first = first or perplexity
        print(
            f"{info.kv_dtype}: perplexity {perplexity:.4f} of {len(ids)} tokens, "
            f"{perplexity / first:.5f} of the first; {info.kv_cache_tokens} tokens of cache in "
            f"{info.kv_cache_bytes / 1e6:.1f} MB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
