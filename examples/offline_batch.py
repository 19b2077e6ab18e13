"""Completes a list of prompts without a server, each with its own parameters, and one chat.

python examples/offline_batch.py [MODEL]
"""

from __future__ import annotations

import sys

from minisgl import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else None  # None: the default model
    greedy = SamplingParams(max_tokens=16, temperature=0)
    several = SamplingParams(max_tokens=16, temperature=0.8, seed=1, n=2)

    with LLM(model, max_model_len=512) as llm:
        # All prompts run together; the results come in the order of the prompts.
        for result in llm.generate(PROMPTS, [greedy, greedy, several], use_tqdm=False):
            for output in result.outputs:
                print(f"{result.prompt} ->{output.text!r} ({output.finish_reason})")

        chat = [{"role": "user", "content": "Name one planet."}]
        (answer,) = llm.chat(chat, greedy, use_tqdm=False)
        print("chat:", answer.outputs[0].text)


if __name__ == "__main__":
    main()
