"""Answers that are held to calls, to a form or to either, behind a thought or not: what a random
model writes under their grammars is read as valid calls and forms, however it is cut.
"""

from __future__ import annotations

import json
import random
from decimal import Decimal
from typing import Any

import pytest

from minisgl.sampling_params import StructuredOutputsParams
from minisgl.text.formats import AnswerFormats
from minisgl.text.grammar_compiler import compile_grammar, make_tokenizer
from minisgl.text.grammar_text import GrammarError
from minisgl.text.grammars import form_source
from minisgl.text.held_answers import Demand, HeldAnswer, NotHeld
from minisgl.text.parsers import TOOL_PARSERS, marker_tokens
from minisgl.text.parts import Said, sort_parts
from minisgl.tokenizer import Tokenizer
from tests.python.server import byte_tokenizer
from tests.python.text.random_schemas import fault, random_schema

llguidance = pytest.importorskip("llguidance")

END = 256
TOKENIZER = make_tokenizer()
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["a", "b"]},
        "n": {"type": "integer", "minimum": -9, "maximum": 99},
        "ok": {"type": "boolean"},
        "note": {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 2},
    },
    "required": ["city", "kind"],
    "additionalProperties": False,
}
NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": SCHEMA, "now": None}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
FORM = {
    "type": "object",
    "properties": {"x": {"type": "string", "maxLength": 40}},
    "required": ["x"],
    "additionalProperties": False,
}
JSON_FORM = StructuredOutputsParams(json=FORM)
# What makes trouble where it isn't expected: a random model that writes these often.
SNIPPETS = [
    *("<think>", "</think>", "<tool_call>\n", "</tool_call>", "[TOOL_CALLS]", "<function=now>\n"),
    *("</parameter>", "</function>", "\n</parameter>\n", "<|end|><|start|>assistant", "<|call|>"),
    *('{"name": "weather", "parameters": {', '{"name": "now"', "[now()]", "[weather(", '"', '\\"'),
    *("\n", "}", "]", '{"x": "', "<|channel|>final<|message|>", "null\n</parameter>\n", '{"id": '),
]
PROMPT = "a:"
DIFFERENT = sorted({id(one): name for name, one in TOOL_PARSERS.items()}.values())
HARMONY = marker_tokens("openai", "gpt_oss") | {"[TOOL_CALLS]", "[ARGS]", "<|tool_call|>"}


class Model:
    """A vocabulary of bytes and, with `markers`, of the formats' markers, each a special token."""

    def __init__(self, *, markers: bool) -> None:
        backend = byte_tokenizer.make_backend()
        if markers:
            backend.add_special_tokens(sorted(marker_tokens("hermes", "qwen3") | HARMONY))
            backend.add_special_tokens(sorted(marker_tokens("deepseek_v3", None)))
        self.tokenizer = Tokenizer(backend, eos_token_ids=[END])
        self.texts = [data.removeprefix(b"\xff") for data in self.tokenizer.grammar_tokens()]
        self.ids = {text: token for token, text in self.tokenizer.added_tokens.items()}
        vocabulary = llguidance.TokenizerWrapper(self)
        self._library = llguidance.LLTokenizer(vocabulary, slices=[])

    eos_token_id, bos_token_id = END, None

    @property
    def tokens(self) -> list[bytes]:
        return self.tokenizer.grammar_tokens()

    @property
    def special_token_ids(self) -> list[int]:
        return list(self.tokenizer.special_token_ids)

    def __call__(self, text: str | bytes) -> list[int]:
        """A text's tokens, markers as those that they are."""
        text = text if isinstance(text, str) else text.decode()
        return self.tokenizer.encode(text)

    def matcher(self, grammar: str) -> Any:
        return llguidance.LLMatcher(self._library, grammar, log_level=0)

    def written(self, grammar: str, seed: int, limit: int = 400) -> str | None:
        """What random weights write, None where it hasn't ended after `limit` tokens."""
        matcher, choose = self.matcher(grammar), random.Random(seed)
        said: list[int] = []
        while len(said) < limit and not matcher.is_stopped():
            snippet = choose.choice(SNIPPETS)
            ids = self(snippet) if choose.random() < 0.7 else list(snippet.encode())
            if choose.random() < 0.3 and matcher.validate_tokens(ids) == len(ids):
                assert matcher.consume_tokens(ids)
                said += ids
                continue
            mask = int.from_bytes(matcher.compute_bitmask(), "little")
            allowed = [token for token in range(len(self.texts)) if mask >> token & 1]
            assert allowed, said
            plain = [token for token in allowed if 32 <= token < 127 or token > END]
            token = choose.choice(plain or allowed)
            if END in allowed and choose.random() < 0.1:
                token = END
            if token == END:
                break
            assert matcher.consume_token(token)
            said.append(token)
        else:
            if not matcher.is_stopped():
                return None
        return b"".join(self.texts[token] for token in said).decode()


SPELLED, MARKED = Model(markers=False), Model(markers=True)


def held(
    formats: AnswerFormats, prompt: str = PROMPT, model: Model = SPELLED, **fields: Any
) -> tuple[HeldAnswer, str]:
    """How an answer is held, and its grammar."""
    form = fields.pop("form", None)
    demand = Demand(
        fields.pop("schemas", SCHEMAS),
        form and form_source(form),
        fields.pop("required", False),
        fields.pop("parallel", True),
        fields.pop("thinks", True),
    )
    assert not fields
    answer = formats.hold(demand, prompt, model.tokenizer)
    return answer, compile_grammar(answer.source, TOKENIZER)


def allows(grammar: str, text: str) -> bool:
    """Whether a text is a whole answer."""
    matcher = SPELLED.matcher(grammar)
    data = list(text.encode())
    return bool(matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting())


def said(formats: AnswerFormats, answer: HeldAnswer | None, text: str, cut: int = 0) -> Said:
    """What an answer says that comes in two pieces."""
    parsing = formats.parsing(TOOLS, PROMPT, held=answer)
    if parsing is None:
        return Said(text)
    reader = parsing.reader()
    return sort_parts([*reader.read(text[:cut], None), *reader.read(text[cut:], None, final=True)])


def check_cuts(formats: AnswerFormats, answer: HeldAnswer, text: str, step: int = 1) -> Said:
    """What an answer says, which is the same however it is cut."""
    whole = said(formats, answer, text)
    calls = [(one.name, one.arguments) for one in whole.calls]
    for cut in range(0, len(text), step):
        pieces = said(formats, answer, text, cut)
        assert (pieces.content, pieces.reasoning) == (whole.content, whole.reasoning)
        assert [(one.name, one.arguments) for one in pieces.calls] == calls
    parsing = formats.parsing(TOOLS, PROMPT, held=answer)
    assert parsing is not None
    reader = parsing.reader()
    single = [part for character in text for part in reader.read(character, None)]
    pieces = sort_parts([*single, *reader.read("", None, final=True)])
    assert (pieces.content, pieces.reasoning) == (whole.content, whole.reasoning)
    assert [(one.name, one.arguments) for one in pieces.calls] == calls
    return whole


def check_calls(one: Said) -> None:
    for call in one.calls:
        value = json.loads(call.arguments, parse_float=Decimal)
        assert not fault(value, SCHEMAS[call.name] or NO_ARGUMENTS), call


@pytest.mark.parametrize("model", [SPELLED, MARKED], ids=["spelled", "marked"])
@pytest.mark.parametrize("thoughts", [False, True])
@pytest.mark.parametrize("name", DIFFERENT)
def test_what_is_written_is_valid_and_read_as_it_is_meant(
    name: str, thoughts: bool, model: Model
) -> None:
    formats = AnswerFormats(
        name, ("gpt_oss" if name == "openai" else "qwen3") if thoughts else None
    )
    for form, required in ((None, True), (JSON_FORM, False), (None, False)):
        answer, grammar = held(formats, form=form, required=required, model=model)
        made = (model.written(grammar, seed) for seed in range(8))
        texts = [text for text in made if text is not None]
        assert texts
        for text in texts:
            whole = check_cuts(formats, answer, text, 11)
            check_calls(whole)
            if required:
                assert whole.calls, text
                assert not whole.content
            elif form is not None and not whole.calls:
                assert not fault(json.loads(whole.content), FORM)
            else:
                assert form is None or not whole.content


@pytest.mark.parametrize("name", ["qwen3_coder", "pythonic", "openai", "deepseek_v31"])
def test_arguments_keep_to_random_schemas(name: str) -> None:
    formats, stopped, refused = AnswerFormats(name), 0, 0
    for seed in range(24):
        schema = random_schema(seed, 2, ("id", "name", "kind", "tags", "größe"))
        tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
        try:
            answer, grammar = held(formats, schemas={"f": schema}, required=True, parallel=False)
        except GrammarError:
            refused += 1
            continue
        for attempt in range(2):
            text = SPELLED.written(grammar, attempt, 2000)
            if text is None:
                continue
            stopped += 1
            parsing = formats.parsing(tools, PROMPT, held=answer)
            assert parsing is not None
            (call,) = sort_parts(parsing.reader().read(text, None, final=True)).calls
            value = json.loads(call.arguments, parse_float=Decimal)
            assert not fault(value, schema), (seed, text, call)
    assert stopped >= 40 - 2 * refused
    assert refused <= (4 if name == "qwen3_coder" else 0)


CALLS = {
    "hermes": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern", "kind": "a"}}\n'
    "</tool_call>",
    "qwen3_coder": "<tool_call>\n<function=weather>\n<parameter=city>\nBern\n</parameter>\n"
    "<parameter=kind>\na\n</parameter>\n</function>\n</tool_call>",
    "pythonic": '[weather(city="Bern", kind="a")]',
    "llama3_json": '{"name": "weather", "parameters": {"city": "Bern", "kind": "a"}}',
    "openai": "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
    '{"city": "Bern", "kind": "a"}',
}
HEADERS = {"openai": "<|channel|>final<|message|>"}


@pytest.mark.parametrize("thought", [False, True])
@pytest.mark.parametrize("name", ["hermes", "qwen3_coder", "llama3_json"])
def test_a_call_that_is_cut_before_its_name_is_no_text(name: str, thought: bool) -> None:
    formats = AnswerFormats(name, "qwen3" if thought else None)
    answer, _ = held(formats, required=True)
    text = f"{CALLS[name]}\n{CALLS[name]}"
    if thought:
        text = f"<think>\nI see.\n</think>\n\n{text}"
    for size in range(len(text)):
        parsing = formats.parsing(TOOLS, PROMPT, held=answer)
        assert parsing is not None
        said = sort_parts(parsing.reader().read(text[:size], None, final=True))
        assert said.content == "", text[:size]
        assert len(said.calls) <= 2


@pytest.mark.parametrize("name", CALLS)
def test_the_model_s_own_way_is_allowed(name: str) -> None:
    formats, call, header = AnswerFormats(name), CALLS[name], HEADERS.get(name, "")
    form = header + '{"x": "y"}'
    wrong = call.replace("city", "town")
    forced = held(formats, required=True, form=JSON_FORM)[1]
    assert allows(forced, call)
    assert not any(allows(forced, text) for text in (wrong, form, "Hello"))
    either, grammar = held(formats, form=JSON_FORM)
    assert allows(grammar, call)
    assert allows(grammar, form)
    assert not any(allows(grammar, text) for text in (wrong, header + "Hello", form + call))
    (one,) = check_cuts(formats, either, call).calls
    assert one.arguments == '{"city": "Bern", "kind": "a"}'
    assert check_cuts(formats, either, form).content == '{"x": "y"}'
    free = held(formats)[1]
    assert allows(free, call)
    assert allows(free, header + 'Hello {"a": [1]}\nyou')
    assert not allows(free, wrong)
    if name != "openai":
        assert allows(free, "Hello\n" + call)
        assert not allows(free, "Hello\n" + wrong)


THOUGHT = "I may <tool_call> and {\n[now( </thin, as I like"


@pytest.mark.parametrize("form", [None, JSON_FORM])
def test_a_thought_comes_first_where_the_model_thinks(form: Any) -> None:
    formats = AnswerFormats("hermes", "qwen3")
    last = CALLS["hermes"] if form is None else '{"x": "</think><think>"}'
    fields: Any = {"form": form, "required": form is None}
    _, begun = held(formats, "a:<think>\n", **fields)
    assert allows(begun, f"{THOUGHT}</think>\n\n{last}")
    assert allows(begun, f"</think>{last}")
    assert not any(allows(begun, text) for text in (last, THOUGHT, f"a</think>b</think>{last}"))
    answer, may = held(formats, **fields)
    assert allows(may, last)
    assert allows(may, f"<think>\n{THOUGHT}\n</think>\n\n{last}")
    assert not any(allows(may, text) for text in (f"{THOUGHT}</think>{last}", f"<think>{last}"))
    whole = check_cuts(formats, answer, f"<think>\n{THOUGHT}\n</think>\n\n{last}")
    assert whole.reasoning == THOUGHT
    assert whole.content == ("" if form is None else last)
    assert len(whole.calls) == (form is None)
    for prompt, thinks in (("a:<think>\n\n</think>\n\n", True), ("a:", False)):
        at_once, grammar = held(formats, prompt, thinks=thinks, **fields)
        assert allows(grammar, last)
        assert not allows(grammar, f"<think>a</think>{last}")
        assert said(formats, at_once, last).content == whole.content
    assert not allows(held(AnswerFormats("hermes"), **fields)[1], f"<think>a</think>{last}")


def test_a_strict_call_isn_t_one_in_a_thought() -> None:
    formats = AnswerFormats("hermes", "qwen3")
    call = CALLS["hermes"]
    answer, grammar = held(formats)
    text = f"<think>{THOUGHT}</think>Well: {call} so"
    assert allows(grammar, text)
    assert allows(grammar, f"<think>{THOUGHT}")  # it may end there
    assert not allows(grammar, text.replace("city", "town"))
    whole = said(formats, answer, text)
    assert (whole.reasoning, len(whole.calls)) == (THOUGHT, 1)
    assert whole.content.split() == ["Well:", "so"]


def test_messages_of_harmony() -> None:
    formats = AnswerFormats("openai", "gpt_oss")
    analysis = "<|channel|>analysis<|message|>a } <think> b<|end|><|start|>assistant"
    final = '<|channel|>final<|message|>{"x": "<|end|><|call|>"}'
    answer, grammar = held(formats, form=JSON_FORM)
    for text in (final, analysis + final, analysis * 2 + CALLS["openai"]):
        assert allows(grammar, text)
    assert not allows(grammar, analysis)
    whole = check_cuts(formats, answer, analysis + final)
    assert (whole.reasoning, json.loads(whole.content)) == (
        "a } <think> b",
        {"x": "<|end|><|call|>"},
    )
    assert not allows(held(formats, form=JSON_FORM, thinks=False)[1], analysis + final)
    alone = AnswerFormats(None, "gpt_oss")
    answer, grammar = held(alone, form=JSON_FORM, schemas={})
    assert allows(grammar, analysis + final)
    assert said(alone, answer, analysis + final).content == whole.content
    call = CALLS["openai"].replace("Bern", "<|call|>")
    forced, _ = held(formats, required=True)
    assert json.loads(said(formats, forced, call).calls[0].arguments)["city"] == "<|call|>"
    preamble = "<|channel|>commentary<|message|>Well.<|end|><|start|>assistant"
    assert allows(held(formats)[1], analysis + preamble + CALLS["openai"])


PARAMETERS: Any = {
    "$defs": {"color": {"enum": ["red", "blue"]}, "list": {"items": {"$ref": "#/$defs/color"}}},
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "maybe": {"type": ["string", "null"]},
        "color": {"$ref": "#/$defs/color"},
        "colors": {"type": "array", "items": {"$ref": "#/$defs/color"}},
        "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]+$"},
        "part": {"type": "string", "pattern": "b|c", "minLength": 2},
        "several": {"anyOf": [{"type": "string", "maxLength": 9}, {"type": "array"}]},
        "any": {"type": ["string", "object", "integer"]},
        "when": {"type": "string", "format": "date-time"},
        "mail": {"anyOf": [{"type": "string", "format": "email"}, {"type": "null"}]},
        "mixed": {"enum": ["auto", 3, None]},
    },
}


@pytest.mark.parametrize(
    ("name", "value", "argument"),
    [
        ("text", "a\n<b>\n", "a\n<b>\n"),
        ("text", "1", "1"),
        ("maybe", "null", None),
        ("maybe", "nulls", "nulls"),
        ("color", "red", "red"),
        ("color", "green", ...),
        ("colors", '["red"]', ["red"]),
        ("colors", '["green"]', ...),
        ("code", "AB/12", "AB/12"),
        ("code", "xAB/12", ...),
        ("part", "abc", "abc"),
        ("part", "b", ...),
        ("part", "aaa", ...),
        ("several", "[1]", [1]),
        ("several", "ab", "ab"),
        ("several", '"quoted and long"', ...),
        ("several", '["</parameter></function>"]', ["</parameter></function>"]),
        ("several", '{"a": 1', '{"a": 1'),
        ("several", "[1", ...),
        ("any", '{"a":\n"\n</parameter>\n</function>"}', ...),
        ("any", '{"a": "</parameter></function>"}', {"a": "</parameter></function>"}),
        ("any", "[1", "[1"),
        ("any", "3 is a number", "3 is a number"),
        ("any", "3", 3),
        ("any", '"a', '"a'),
        ("any", " {", ...),
        ("when", "2026-02-28T23:59:59Z", "2026-02-28T23:59:59Z"),
        ("when", "2026-02-30T23:59:59Z", ...),
        ("mail", "a.b@c.de", "a.b@c.de"),
        ("mixed", "3", 3),
        ("mixed", "null", None),
        ("mixed", "auto", "auto"),
        ("mixed", "4", ...),
    ],
)
def test_values_between_tags_are_of_their_types(name: str, value: str, argument: Any) -> None:
    formats = AnswerFormats("qwen3_coder")
    tools = [{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}]
    answer, grammar = held(formats, schemas={"f": PARAMETERS}, required=True)
    text = (
        f"<tool_call>\n<function=f>\n<parameter={name}>\n{value}\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    assert allows(grammar, text) == (argument is not ...)
    if argument is not ...:
        parsing = formats.parsing(tools, PROMPT, held=answer)
        assert parsing is not None
        (call,) = sort_parts(parsing.reader().read(text, None, final=True)).calls
        assert json.loads(call.arguments) == {name: argument}


NULL = {"type": "null"}


@pytest.mark.parametrize(
    ("schema", "value", "argument"),
    [
        ({"additionalProperties": {"type": "integer"}}, "17", 17),
        ({"properties": {}, "additionalProperties": {"type": "string"}}, "17", "17"),
        ({"additionalProperties": {"$ref": "#/$defs/a"}, "$defs": {"a": NULL}}, "null", None),
        (
            {"properties": {"y": {}}, "additionalProperties": {"type": "object"}},
            '{"a": 1}',
            {"a": 1},
        ),
        ({"additionalProperties": True}, "17", "17"),
        ({}, "17", "17"),
    ],
)
@pytest.mark.parametrize("forced", [True, False])
def test_an_argument_without_a_property_is_of_the_others_type(
    schema: dict[str, Any], value: str, argument: Any, forced: bool
) -> None:
    formats, schema = AnswerFormats("qwen3_coder"), {"type": "object", "required": ["x"], **schema}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}]
    text = (
        f"<tool_call>\n<function=f>\n<parameter=x>\n{value}\n</parameter>\n"
        "</function>\n</tool_call>"
    )
    answer, grammar = held(formats, schemas={"f": schema}, required=True)
    assert allows(grammar, text)
    parsing = formats.parsing(tools, PROMPT, held=answer if forced else None)
    assert parsing is not None
    (call,) = sort_parts(parsing.reader().read(text, None, final=True)).calls
    assert json.loads(call.arguments) == {"x": argument}


def test_python_s_words_stand_for_those_of_json() -> None:
    properties = {"a": {"type": ["boolean", "null"]}, "b": {"type": "number"}}
    schema = {"type": "object", "properties": properties, "required": ["b"]}
    answer, grammar = held(AnswerFormats("pythonic"), schemas={"f": schema}, required=True)
    for text, arguments in (
        ("[f(a=True, b=1e999)]", '{"a": true, "b": 1e999}'),
        ("[f(b=-0.50), f(a=None, b=2)]", '{"b": -0.50}'),
    ):
        assert allows(grammar, text)
        assert said(AnswerFormats("pythonic"), None, text).content == text  # f is none of TOOLS
        parsing = AnswerFormats("pythonic").parsing(
            [{"type": "function", "function": {"name": "f", "parameters": schema}}], "", held=answer
        )
        assert parsing is not None
        calls = sort_parts(parsing.reader().read(text, None, final=True)).calls
        assert calls[0].arguments == arguments
    assert not allows(grammar, "[f(a=True)]")
    assert not allows(grammar, "[f(b=1, )]")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"required": "a"}, "'required'"),
        ({"properties": {"a": {"anyOf": 3}}}, "'anyOf'"),
        ({"properties": {"a": {"type": {}}}}, "'type'"),
        ({"type": "object", "anyOf": [{}]}, "'anyOf'"),
        ({"type": "object", "properties": {"<a>": {}}}, "'<a>'"),
        ({"properties": {"a": {"type": "string", "format": "regex"}}}, "'format' 'regex'"),
        ({"properties": {"a": {"type": "string", "pattern": "^a|b$"}}}, "'pattern'"),
        ({"properties": {"a": {"enum": ["</function>"]}}}, "'</function>'"),
        ({"properties": {"a": {"allOf": [{"type": "string"}, {"type": "null"}]}}}, "'allOf'"),
        ({"properties": {"a": False}}, "allows no value"),
        ({"properties": {"a": {"type": "integer", "minLength": 3, "not": {}}}}, "'not'"),
        ({"properties": {"a": {}}, "minProperties": 1}, "'minProperties'"),
        ({"properties": {}, "required": ["a"], "additionalProperties": False}, "'a'"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "'$ref'"),
    ],
)
def test_what_cant_be_said_between_tags_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(GrammarError, match="tool 'f': ") as refused:
        held(AnswerFormats("qwen3_coder"), schemas={"f": schema}, required=True)
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("name", "schemas", "form", "what"),
    [
        ("pythonic", {"a b": None}, None, "calls"),
        ("hermes", {" a": None}, None, "calls"),
        ("hermes", {"a" * 257: None}, None, "calls"),
        ("deepseek_v3", {"get weather": None}, None, "calls"),
        ("deepseek_v31", {"get weather": None}, None, "calls"),
        ("mistral_args", {"get weather": None}, None, "calls"),
        ("qwen3_coder", {"<f>": None}, None, "calls"),
        ("hermes", {"f": {"type": "string"}}, None, "calls"),
        ("json", SCHEMAS, StructuredOutputsParams(json_object=True), "both"),
    ],
)
def test_what_the_model_cant_write_is_refused(
    name: str, schemas: Any, form: Any, what: str
) -> None:
    with pytest.raises(NotHeld) as refused:
        held(AnswerFormats(name), schemas=schemas, form=form)
    assert refused.value.what == what


@pytest.mark.parametrize("called", ["get weather", "a:b", " a", "user", "assistant", "größe", "a("])
def test_a_call_that_can_be_forced_is_read(called: str) -> None:
    tools = [{"type": "function", "function": {"name": called, "parameters": NO_ARGUMENTS}}]
    num_read = 0
    for name in DIFFERENT:
        formats = AnswerFormats(name)
        try:
            answer, grammar = held(formats, schemas={called: None}, required=True, parallel=False)
        except NotHeld:
            continue
        text = SPELLED.written(grammar, 1)
        assert text is not None
        parsing = formats.parsing(tools, PROMPT, held=answer)
        assert parsing is not None
        calls = sort_parts(parsing.reader().read(text, None, final=True)).calls
        assert [one.name for one in calls] == [called], (name, text)
        num_read += 1
    assert (num_read > 0) == (called != " a")


def test_a_form_doesn_t_begin_as_calls_do() -> None:
    formats = AnswerFormats("hermes", "qwen3")
    any_text = StructuredOutputsParams(regex="(?s:.*)")
    _, grammar = held(formats, form=any_text)
    assert allows(grammar, "Hello <tool_call>")
    assert allows(grammar, CALLS["hermes"])
    assert not allows(grammar, "<tool_call>x")
    with pytest.raises(GrammarError, match="begins as a call"):
        held(formats, form=StructuredOutputsParams(choice=["a", " <tool_call>b"]))


def test_an_object_that_looks_like_a_call_is_announced() -> None:
    formats = AnswerFormats("llama3_json")
    answer, grammar = held(formats, form=StructuredOutputsParams(json_object=True))
    call = CALLS["llama3_json"]
    assert allows(grammar, call)  # it is an object, and so it is read
    assert said(formats, answer, call).content == call
    announced = "<|python_tag|>" + call
    assert allows(grammar, announced)
    assert not allows(grammar, announced.replace("city", "town"))
    assert len(said(formats, answer, announced).calls) == 1
