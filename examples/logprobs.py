"""Shows how likely the model found each token: those of a prompt, and those that it made.

python examples/logprobs.py [MODEL]
"""

from __future__ import annotations

import math
import sys

from minisgl import LLM, SamplingParams

PROMPT = "The quick brown fox jumps over the lazy"


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else None  # None: the default model
    params = SamplingParams(max_tokens=4, temperature=0, logprobs=3, prompt_logprobs=0)

    with LLM(model, max_model_len=512) as llm:
        (result,) = llm.generate(PROMPT, params, use_tqdm=False)
        prompt, made = result.prompt_logprobs or [], result.outputs[0].logprobs or []

        def text(token_id: int) -> str:
            return repr(llm.tokenizer.decode([token_id]))

        print("the prompt:")
        scored = [entry.logprob for entry in prompt if entry.logprob is not None]
        for entry in prompt[1:]:  # nothing stands before the first token: it has no probability
            print(f"  {text(entry.token_id):12} {math.exp(entry.logprob or 0):6.1%}")
        print(f"perplexity {math.exp(-sum(scored) / len(scored)):.1f}")

        print("what follows, and the likeliest tokens in its place:")
        for entry in made:
            others = (f"{text(other)} {math.exp(value):.1%}" for other, value in entry.alternatives)
            print(f"  {text(entry.token_id):12} {', '.join(others)}")


if __name__ == "__main__":
    main()
