"""The installed server over the default model, through the OpenAI SDK."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.python.waiting import PATIENCE

START_SECONDS = 120.0
PAGE = 16  # tokens: the cache has whole pages
QUESTION: list[Any] = [{"role": "user", "content": "Who wrote Hamlet?"}]


@pytest.fixture(scope="module")
def url(default_gguf: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "minisgl", "--port", "0", "--max-model-len", "1024"]
    command.append(str(default_gguf))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines: list[str] = []
    found: list[str] = []
    ready = threading.Event()

    def read(stream: Any) -> None:
        for line in stream:
            lines.append(line)
            if match := re.search(r"ready after .* (http://\S+)", line):
                found.append(match[1])
                ready.set()
        ready.set()  # it has ended

    threading.Thread(target=read, args=(process.stderr,), daemon=True).start()
    try:
        ready.wait(START_SECONDS)
        assert found, "".join(lines)
        yield found[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0, "".join(lines)


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def model(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def test_chat_whole_and_streamed_say_the_same(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=24
    )
    assert "Shakespeare" in (whole.choices[0].message.content or "")
    stream = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        temperature=0,
        max_tokens=24,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in stream:
        usage = chunk.usage or usage
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert usage is not None
    assert whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    # The second finds the first's prompt: all of it but the last few tokens.
    assert usage.prompt_tokens_details is not None
    cached = usage.prompt_tokens_details.cached_tokens or 0
    assert usage.prompt_tokens - 16 <= cached < usage.prompt_tokens


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI, model: str) -> None:
    def ask(n: int) -> list[str]:
        answer = client.completions.create(
            model=model, prompt="Once upon a time", seed=5, n=n, max_tokens=16
        )
        return [choice.text for choice in answer.choices]

    several = ask(3)
    assert ask(3) == several
    assert ask(1) == several[:1]
    assert len(set(several)) == 3


def test_echo_and_logprobs(client: openai.OpenAI, model: str) -> None:
    answer = client.completions.create(
        model=model, prompt="The sky is blue", echo=True, logprobs=2, max_tokens=4, temperature=0
    )
    choice = answer.choices[0]
    assert choice.text.startswith("The sky is blue")
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == choice.text
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    for token, offset in zip(logprobs.tokens, logprobs.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    # Greedy: what was generated is the most likely of its alternatives.
    last, best = logprobs.token_logprobs[-1], logprobs.top_logprobs[-1]
    assert last == pytest.approx(max(best.values()))


def test_a_stop_string(client: openai.OpenAI, model: str) -> None:
    def ask(**fields: Any) -> Any:
        answer = client.completions.create(
            model=model, prompt="1, 2, 3, 4,", temperature=0, max_tokens=24, **fields
        )
        return answer.choices[0]

    assert ", 7" in ask().text
    choice = ask(stop=", 7")
    assert (choice.text, choice.finish_reason) == (ask().text.partition(", 7")[0], "stop")


def test_a_conversation_goes_on_from_what_was_computed(url: str) -> None:
    """Its answers are spelled letter by letter, as the tokenizer never has them."""

    def ask(path: str, **body: Any) -> Any:
        return httpx.post(url + path, json=body, timeout=120).raise_for_status().json()

    letters = [ask("/tokenize", prompt=letter)["tokens"][0] for letter in "etaoin "]
    messages = QUESTION.copy()
    computed: list[int] = []  # all ids of the last turn
    for turn in range(4):
        answer = ask(
            "/v1/chat/completions",
            messages=messages,
            seed=turn,
            allowed_token_ids=letters,
            max_tokens=32,
            return_token_ids=True,
        )
        prompt, choice = answer["prompt_token_ids"], answer["choices"][0]
        assert prompt[: len(computed)] == computed
        assert (ask("/tokenize", messages=messages)["tokens"] == prompt) == (turn == 0)
        cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached >= len(computed) - PAGE
        computed = prompt + choice["token_ids"]
        messages += [choice["message"], {"role": "user", "content": "And who else?"}]


def test_nothing_is_left_when_clients_go(url: str) -> None:
    def live() -> float:
        text = httpx.get(url + "/metrics").text
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        values = [re.search(rf"^minisgl:{name}{{.*}} (\S+)$", text, re.MULTILINE) for name in names]
        return sum(float(value[1]) for value in values if value)

    body = {"prompt": [1] * 50, "max_tokens": 900, "ignore_eos": True, "n": 4}
    with (
        httpx.Client() as client,
        client.stream("POST", url + "/v1/completions", json={**body, "stream": True}) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()  # kept: without it the response would be closed
        next(lines)
        assert live() > 0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url + "/v1/completions", json=body, timeout=httpx.Timeout(PATIENCE, read=0.5))
    end = time.monotonic() + PATIENCE
    while live() > 0:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_embeddings_and_scores(client: openai.OpenAI, model: str, url: str) -> None:
    cat, mat, rates = "A cat sits on the mat.", "A cat is on a mat.", "Interest rates rose again."
    answer = client.embeddings.create(model=model, input=[cat, mat, rates])
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert all(len(one.embedding) == 576 for one in answer.data)
    plain = client.embeddings.create(model=model, input=cat, encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-6)
    assert sum(x * x for x in plain.data[0].embedding) == pytest.approx(1)
    body = {"text_1": cat, "text_2": [cat, mat, rates], "pooling": "mean"}
    scores = [one["score"] for one in httpx.post(f"{url}/v1/score", json=body).json()["data"]]
    assert scores[0] == pytest.approx(1)
    assert scores[0] > scores[1] > scores[2]
