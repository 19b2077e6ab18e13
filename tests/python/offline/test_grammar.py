"""Answers by grammars: random weights at temperature 1 write what the grammar says, whatever is
beside them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import llguidance
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from minisgl import LLM, SamplingParams, StructuredOutputsParams
from minisgl.sampling_params import ParameterError
from tests.python.running.tiny_model import make_tiny_model
from tests.python.server.byte_tokenizer import END, TURN, byte_alphabet

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}


def json_grammar(schema: dict[str, Any]) -> str:
    return str(llguidance.LLMatcher.grammar_from_json_schema(schema, defaults=COMPACT))


def regex_grammar(pattern: str) -> str:
    return str(llguidance.LLMatcher.grammar_from_regex(pattern))


PERSON = json_grammar(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 3},
            "kind": {"enum": ["cat", "dog", None]},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)


def is_person(text: str) -> bool:
    match json.loads(text):
        case {"name": str(name), "age": int(age), "tags": list(tags), **rest}:
            return (
                2 <= len(name) <= 12
                and 0 <= age <= 120
                and len(tags) <= 3
                and all(isinstance(tag, str) and len(tag) <= 5 for tag in tags)
                and rest in ({}, {"kind": "cat"}, {"kind": "dog"}, {"kind": None})
            )
    return False


NESTED = json_grammar(
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"type": "number", "maximum": 99}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/node"},
        "minItems": 1,
        "maxItems": 4,
    }
)


def is_nested(text: str) -> bool:
    value = json.loads(text)
    return 1 <= len(value) <= 4 and all(
        set(node) == {"value", "next"}
        and isinstance(node["value"], bool)
        and (node["next"] is None or node["next"] <= 99)
        for node in value
    )


PATTERN = r"([0-9]{3}-[a-f]{2,9}|yes|no): [ä-ü€]{1,6}!?"
Case = tuple[str, Callable[[str], bool]]
CASES: dict[str, Case] = {
    "person": (PERSON, is_person),
    "nested": (NESTED, is_nested),
    "regex": (regex_grammar(PATTERN), lambda text: bool(re.fullmatch(PATTERN, text))),
    "lark": (
        'start: "a" b ";"\nb: /[x-z]{5}/',
        lambda text: bool(re.fullmatch("a[x-z]{5};", text)),
    ),
}
PROMPTS = [[1, 2, 3], [4, 5], list(range(1, 100)), [7] * 20]


@pytest.fixture(scope="module", params=["llama", "qwen3_moe"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("grammar") / "tiny", family=request.param)


@pytest.fixture(scope="module")
def llm(model: Path) -> Iterator[LLM]:
    with LLM(
        str(model),
        show_progress=False,
        num_threads=2,
        kv_cache_tokens=16384,
        reasoning_parser="think",
    ) as llm:
        yield llm


def params(grammar: str | None, seed: int = 1, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 400, "seed": seed, "grammar": grammar, **fields})


def mixed(count: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Requests with every grammar, and as many without one."""
    grammars = [grammar for grammar, _ in CASES.values()]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(count)]
    some = [
        params(grammars[index // 2 % len(grammars)] if index % 2 else None, index, max_tokens=60)
        for index in range(count)
    ]
    return prompts, some


def tokens_of(llm: LLM, prompts: list[list[int]], some: list[SamplingParams]) -> list[list[int]]:
    results = llm.generate(prompts, some, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


@pytest.mark.parametrize("name", CASES)
def test_every_answer_that_stops_is_valid(llm: LLM, name: str) -> None:
    grammar, is_valid = CASES[name]
    prompts = [PROMPTS[seed % len(PROMPTS)] for seed in range(24)]
    results = llm.generate(prompts, [params(grammar, seed) for seed in range(24)], use_tqdm=False)
    for result in results:
        (output,) = result.outputs
        assert output.finish_reason == "stop"
        assert output.token_ids[-1] == END
        assert is_valid(output.text), output.text
    assert len({result.outputs[0].text for result in results}) > 4  # they were drawn


MERGES = (("{", '"'), ("n", "a"), ("m", "e"), ("na", "me"), ('"', ":"), ('"', ","))


def merging_tokenizer() -> tokenizers.Tokenizer:
    """Bytes, the two special tokens, and the pairs of MERGES."""
    alphabet = byte_alphabet()
    texts = [*(alphabet[byte] for byte in range(256)), "<end>", "<turn>", *map("".join, MERGES)]
    vocabulary = {text: number for number, text in enumerate(texts)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<end>", special=True), AddedToken("<turn>")])
    return backend


def test_what_a_grammar_leaves_no_choice_about_is_written_as_the_tokenizer_would(
    tmp_path: Path,
) -> None:
    tokenizer = merging_tokenizer()
    folder = make_tiny_model(tmp_path / "tiny", vocab_size=tokenizer.get_vocab_size())
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ["name", "named", "renamed"]
    digits = {"type": "string", "pattern": "^[0-9]{2}$"}
    grammar = json_grammar(
        {
            "type": "object",
            "properties": dict.fromkeys(names, digits),
            "required": names,
            "additionalProperties": False,
        }
    )
    with LLM(str(folder), show_progress=False, num_threads=2) as llm:
        answers = []
        for logprobs in (0, None):
            before = llm.stats().num_steps
            (result,) = llm.generate([1, 2, 3], params(grammar, logprobs=logprobs), use_tqdm=False)
            answers.append((result.outputs[0], llm.stats().num_steps - before))
    (one, one_steps), (several, several_steps) = answers
    assert several.token_ids == one.token_ids
    assert re.fullmatch(r'\{"name":"\d\d","named":"\d\d","renamed":"\d\d"\}', several.text)
    assert several.token_ids[:-1] == tokenizer.encode(several.text).ids
    assert one_steps == len(one.token_ids) - 1  # none for the end
    assert several_steps <= 10


def test_those_beside_a_constrained_request_get_what_they_get_alone(llm: LLM) -> None:
    prompts, some = mixed(16)
    together = tokens_of(llm, prompts, some)
    alone = [tokens_of(llm, [prompt], [one])[0] for prompt, one in zip(prompts, some, strict=True)]
    assert together == alone


def test_preempted_ones_go_on_in_their_grammar(llm: LLM, model: Path) -> None:
    prompts, some = mixed(16)
    with LLM(str(model), show_progress=False, num_threads=2, kv_cache_tokens=192) as small:
        assert tokens_of(small, prompts, some) == tokens_of(llm, prompts, some)
        assert small.stats().num_preemptions > 0


def test_two_ranks_draw_the_same(llm: LLM, model: Path) -> None:
    prompts, some = mixed(8)
    prompts += [list(THINKING.encode()), list(THINKING.encode())]
    some += [budget(3, seed=1, allowed_token_ids=[*range(97, 123)]), budget(0, seed=2)]
    with LLM(str(model), tp=2, show_progress=False, reasoning_parser="think") as two:
        assert tokens_of(two, prompts, some) == tokens_of(llm, prompts, some)


THINKING = "Think first.<think>\n"
CLOSING = "\n</think>\n\n"


def budget(tokens: int | None, **fields: Any) -> SamplingParams:
    return params(None, ignore_eos=True, max_tokens=60, thinking_token_budget=tokens, **fields)


@pytest.mark.parametrize("tokens", [0, 1, 2, 7])
def test_a_thought_is_closed_when_its_budget_is_used_up(llm: LLM, tokens: int) -> None:
    fields: dict[str, Any] = {"logprobs": 1, "presence_penalty": 1.5, "allowed_token_ids": [97, 98]}
    (result,) = llm.generate(THINKING, budget(tokens, **fields), use_tqdm=False)
    (output,) = result.outputs
    assert len(output.token_ids) == 60  # what closes it counts
    assert set(output.text[:tokens]) <= {"a", "b"}
    assert output.text[tokens:].startswith(CLOSING)
    assert set(output.text[tokens + len(CLOSING) :]) == {"a", "b"}
    assert output.logprobs is not None
    assert all(one.logprob is not None and -20 < one.logprob < 0 for one in output.logprobs)


def test_a_budget_touches_no_answer_without_a_thought_that_lasts(llm: LLM) -> None:
    for prompt, tokens in ((THINKING, None), (THINKING, -1), (THINKING, 60), ("Think first.", 0)):
        limited, free = llm.generate(
            [prompt, prompt], [budget(tokens, seed=3), budget(None, seed=3)], use_tqdm=False
        )
        assert limited.outputs[0].token_ids == free.outputs[0].token_ids


def test_a_stop_string_and_max_tokens_may_end_an_answer_within_what_closes_its_thought(
    llm: LLM,
) -> None:
    (stopped,) = llm.generate(THINKING, budget(4, stop=["</thi"]), use_tqdm=False)
    assert stopped.outputs[0].stop_reason == "</thi"
    cut = params(None, ignore_eos=True, max_tokens=8, thinking_token_budget=4)
    (result,) = llm.generate(list(THINKING.encode()), cut, use_tqdm=False)
    assert result.outputs[0].finish_reason == "length"
    assert bytes(result.outputs[0].token_ids[4:]) == CLOSING[:4].encode()


def test_a_budget_needs_thoughts_that_can_be_closed(model: Path) -> None:
    with LLM(str(model), show_progress=False) as plain:
        with pytest.raises(ParameterError, match="reasoning_parser is none") as refused:
            plain.generate(THINKING, budget(3), use_tqdm=False)
        assert refused.value.parameter == "thinking_token_budget"


def test_what_a_request_says_beside_its_grammar(llm: LLM) -> None:
    def text(grammar: str, **fields: Any) -> str:
        return llm.generate([1, 2], params(grammar, **fields), use_tqdm=False)[0].outputs[0].text

    digits = regex_grammar("[0-9]{1,8}")
    # The grammar may end after a digit: not before min_tokens, and with ignore_eos not at all.
    assert all(len(text(digits, seed=seed, min_tokens=5)) >= 5 for seed in range(8))
    assert all(len(text(digits, seed=seed, ignore_eos=True)) == 8 for seed in range(4))
    # It is complete after 8, whatever min_tokens says.
    assert len(text(digits, min_tokens=20)) == 8
    # What it allows alone comes, banned or not; else a ban holds.
    assert text(regex_grammar("aaa"), bad_words=["a"]) == "aaa"
    assert "a" not in text(regex_grammar("[ab]{40}"), bad_words=["a"])
    assert set(text(digits, allowed_token_ids=[ord("7"), ord("x"), END])) == {"7"}
    assert text(regex_grammar("[a-z]{30}"), logit_bias={ord("q"): 100.0}) == "q" * 30
    drawn = text(regex_grammar("[a-z]{26}"), frequency_penalty=2.0, presence_penalty=2.0, top_k=500)
    assert len(set(drawn)) > 15


def test_a_fault_ends_the_request_alone(llm: LLM) -> None:
    prompts, some = mixed(4)
    expected = tokens_of(llm, prompts, some)
    for grammar, fields, message in (
        ("start: /[/", {}, "grammar: the grammar has a pattern that is not supported: unclosed"),
        ('{"grammars": [{"json_schema": {"type": "text"}}]}', {}, "a 'type' that does not exist"),
        ("start: <[0-9999]>", {}, "the grammar can't be read"),
        (regex_grammar("[0-9]{4}"), {"allowed_token_ids": [ord("x")]}, "allowed_token_ids"),
    ):
        with pytest.raises(ValueError, match=message):
            llm.generate([1], params(grammar, **fields), use_tqdm=False)
        assert tokens_of(llm, prompts, some) == expected
    (cut,) = llm.generate([1], params(PERSON, max_tokens=5), use_tqdm=False)
    assert cut.outputs[0].finish_reason == "length"
    assert llm.stats().num_running == llm.stats().num_waiting == 0


def test_a_grammar_that_would_end_the_process_is_refused(llm: LLM) -> None:
    """Nested more deeply than a thread's stack holds."""
    rules = "start: a0\n" + "".join(f"a{k}: a{k + 1}\n" for k in range(60_000)) + 'a60000: "x"'
    with pytest.raises(ParameterError, match="grammar: the form of the answer is too complex"):
        llm.generate([1], params(rules), use_tqdm=False)


def test_special_tokens_of_the_model(llm: LLM) -> None:
    """The process that compiles a grammar first knows none of them."""
    (result,) = llm.generate([1], params(f'start: "a" <[{TURN}-{TURN}]> "z"'), use_tqdm=False)
    assert result.outputs[0].token_ids == [ord("a"), TURN, ord("z"), END]


def test_structured_outputs(llm: LLM) -> None:
    forms = [
        StructuredOutputsParams(choice=["left", "right"]),
        StructuredOutputsParams(json={"type": "array", "items": {"enum": [1, 2]}, "maxItems": 3}),
        None,
    ]
    given = [SamplingParams(max_tokens=300, seed=3, structured_outputs=form, n=2) for form in forms]
    choice, array, free = llm.generate(PROMPTS[:3], given, use_tqdm=False)
    assert {output.text for output in choice.outputs} <= {"left", "right"}
    assert all(set(json.loads(output.text)) <= {1, 2} for output in array.outputs)
    assert free.outputs[0].text
    refused = SamplingParams(structured_outputs=StructuredOutputsParams(json={"not": {}}))
    with pytest.raises(ParameterError, match="'not' \\(at '#'\\) is not supported"):
        llm.generate("a", refused, use_tqdm=False)
    for wrong in ({}, {"regex": "a", "choice": ["b"]}):
        with pytest.raises(ParameterError, match="must have one of json, regex"):
            SamplingParams(structured_outputs=StructuredOutputsParams(**wrong))
