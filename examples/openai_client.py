"""Talks to a running server through OpenAI's client: one answer whole, one as it is made.

minisgl-serve &
pip install openai
python examples/openai_client.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import argparse

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--question", default="Who wrote Hamlet?")
    args = parser.parse_args()

    # A server that was started with --api-key needs that key here; others take any.
    client = OpenAI(base_url=f"{args.url}/v1", api_key="none")
    model = client.models.list().data[0].id

    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": args.question}],
        max_tokens=32,
        temperature=0,
    )
    print("whole:", answer.choices[0].message.content)
    if answer.usage:
        print(f"{answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out")

    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": args.question}],
        max_tokens=32,
        temperature=0,
        stream=True,
        extra_body={"repetition_penalty": 1.1},  # what OpenAI's API doesn't have goes here
    )
    print("streamed: ", end="")
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
