"""Forms of answers as grammars: what they allow, what is refused, and what a hostile one does to
others.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from minisgl.sampling_params import StructuredOutputsParams
from minisgl.text.answer_form import AnswerForm, CallForm, CallsForm
from minisgl.text.errors import TextQueueFull, WorkerLost
from minisgl.text.grammar_compiler import (
    MAX_LEXER_STATES,
    compile_grammar,
    make_tokenizer,
)
from minisgl.text.grammar_text import GrammarError, lark_text
from minisgl.text.grammars import (
    GrammarLimits,
    GrammarRefused,
    Grammars,
    GrammarSource,
    answer_source,
    form_source,
)
from minisgl.text.turns import Turns
from tests.python.text.random_schemas import fault, random_schema
from tests.python.waiting import until

llguidance = pytest.importorskip("llguidance")

END, SPECIAL = 256, 257
TOKENIZER = make_tokenizer()


def schema_source(schema: Any, **options: Any) -> GrammarSource:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    return form_source(StructuredOutputsParams(json=text, **options))


def matcher(source: GrammarSource) -> Any:
    return llguidance.LLMatcher(TOKENIZER, compile_grammar(source, TOKENIZER), log_level=0)


def allows(source: GrammarSource, text: str | list[int]) -> bool:
    """Whether a text is a whole answer."""
    tokens = list(text.encode()) if isinstance(text, str) else text
    one = matcher(source)
    return one.try_consume_tokens(tokens) == len(tokens) and one.is_accepting()


def refusal(source: GrammarSource) -> str:
    with pytest.raises(GrammarError) as refused:
        compile_grammar(source, TOKENIZER)
    return str(refused.value)


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("schema", "text", "allowed"),
    [
        (OBJECT, '{"a":1}', True),
        (OBJECT, '{ "a": 1 }', True),
        (OBJECT, '{\n  "a": 1,\n  "b": [2]\n}', True),
        (OBJECT, '{"a":   1}', False),  # white space has bounds
        (OBJECT, ' {"a":1}', False),
        (OBJECT, '{"a":"x"}', False),
        (OBJECT, r'{"\u0061":"x"}', False),  # the same name, written in another way
        (OBJECT, '{"a":1,"a":"x"}', False),
        ({"uniqueItems": False, "type": "array"}, "[1,1]", True),
        ({"const": "größe\n"}, '"größe\\n"', True),
        ({"type": "string", "maxLength": 2}, '"😀😀"', True),
        ({"type": "string", "maxLength": 2}, '"😀😀😀"', False),
        ({"type": "string", "maxLength": 2.0}, '"ab"', True),
        ({"type": "integer", "exclusiveMinimum": 5}, "5", False),
        ({"type": "array", "maxItems": 100_000, "items": {"const": 1}}, "[1,1]", True),
        ({"type": "object", "minProperties": 1}, "{}", False),
        ({"required": ["a", "b"], "minProperties": 2, "type": "object"}, '{"a":1,"b":1}', True),
        (True, "[null]", True),
    ],
)
def test_what_a_schema_allows(schema: Any, text: str, allowed: bool) -> None:
    assert allows(schema_source(schema), text) == allowed


def test_how_json_is_written() -> None:
    compact = schema_source(OBJECT, disable_any_whitespace=True)
    assert allows(compact, '{"a":1}')
    assert not allows(compact, '{"a": 1}')
    tabs = schema_source(OBJECT, whitespace_pattern=r"\t{0,2}")
    assert allows(tabs, '{"a":\t\t1}')
    assert not allows(tabs, '{"a": 1}')
    closed = schema_source(OBJECT, disable_additional_properties=True)
    assert not allows(closed, '{"a":1,"b":2}')
    inner = {"properties": {"x": {**OBJECT, "additionalProperties": True}}, "type": "object"}
    assert allows(schema_source(inner, disable_additional_properties=True), '{"x":{"b":2}}')


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"not": {"type": "null"}}, "'not' (at '#')"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "'not' (at '#/properties/a/items')"),
        ({"$defs": {"b": {"if": True}}, "$ref": "#/$defs/b"}, "'if' (at '#/$defs/b')"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"type": "array", "contains": {}}, "'contains'"),
        ({"anyOf": [{"propertyNames": {"maxLength": 1}}]}, "'propertyNames' (at '#/anyOf/0')"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "dependentRequired": {"a": ["b"]}},
         "'dependentRequired'"),
        ({"unevaluatedProperties": False}, "'unevaluatedProperties'"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "'x-guidance'"),
        ({"type": "string", "format": "zip"}, "'format'"),
        ({"type": "text"}, "'type'"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 1}]}, "'oneOf'"),
        ({"$ref": "https://example.com/a.json"}, "'$ref'"),
        ({"$ref": "#/$defs/none"}, "'$ref'"),
        ({"patternProperties": {"^a": {}, "a$": {}}}, "'patternProperties'"),
        ({"minItems": 10**9}, "'minItems'"),
        ({"maxItems": 10**9}, "'maxItems'"),
        ({"maxLength": -1}, "'maxLength'"),
        ({"minLength": "a"}, "'minLength'"),
        ({"type": "object", "minProperties": 2}, "'minProperties'"),
        ({"type": "object", "maxProperties": 2, "properties": {"a": {}}}, "'maxProperties'"),
        ({"const": 2**53 + 1}, "'const'"),
        ({"enum": [{"a": [-(2**60)]}]}, "'enum'"),
        ({"type": "integer", "minimum": 2**53 + 1}, "'minimum'"),
        ({"const": "\x01"}, "'const'"),
        ({"properties": {"\x00": {}}}, "'properties'"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "allows no value"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "allows no text"),
        (False, "allows no value"),
        ([], "must be an object"),
        ({"items": 5}, "at '#/items'"),
        ("{", "not valid JSON"),
        ('{"items":' * 150 + "{}" + "}" * 150, "nested too deeply"),
        ('{"items":' * 10_000 + "{}" + "}" * 10_000, "recursion"),
    ],
)  # fmt: skip
def test_a_schema_that_is_not_kept_exactly_is_refused_with_its_keyword(
    schema: Any, keyword: str
) -> None:
    assert keyword in refusal(schema_source(schema))


def test_names_of_properties_are_no_keywords() -> None:
    schema = {"type": "object", "properties": {"not": {"const": 1}, "maxItems": {"enum": ["if"]}}}
    assert allows(schema_source(schema), '{"not":1,"maxItems":"if"}')


def test_expressions_choices_and_grammars() -> None:
    regex = form_source(StructuredOutputsParams(regex=r"^\d{3}-(a|b)/$"))
    assert allows(regex, "123-a/")
    assert not allows(regex, "123-a/ ")
    gbnf = form_source(StructuredOutputsParams(grammar='root ::= "a" b\nb ::= [0-9]+\n'))
    assert allows(gbnf, "a12")
    assert not allows(gbnf, "a")
    lark = form_source(
        StructuredOutputsParams(grammar='start: "x" %json {"type":"null"} | /[a-c]+/')
    )
    assert allows(lark, "xnull")
    assert allows(lark, "abc")
    any_object = form_source(StructuredOutputsParams(json_object=True))
    assert allows(any_object, '{"a":[1,{}]}')
    assert not allows(any_object, "[1]")


def test_a_choice_may_be_any_text() -> None:
    characters = [chr(code) for code in (*range(300), 0x2028, 0xD7FF, 0xE000, 0xFFFF, 0x1F600)]
    rng = random.Random(0)
    choices = ["", "a", "ab", "//", "#x", *("".join(rng.sample(characters, 5)) for _ in range(50))]
    source = form_source(StructuredOutputsParams(choice=[*choices, *characters]))
    for choice in (*choices[:15], *rng.sample(characters, 25), "\x7f", '"', "\\"):
        assert allows(source, choice), choice
    assert not allows(source, "abc")
    assert lark_text("\x7f") == '"\\u007f"'


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        ("regex", "(?=a)", "look-around"),
        ("regex", "[", "unclosed character class"),
        ("regex", "(" * 300 + ")" * 300, "nested parentheses"),
        ("choice", "[]", "choices"),
        ("grammar", "hello", "neither Lark's nor GBNF's"),
        ("grammar", "", "No 'root' rule found"),
        ("grammar", " \n# a comment\n", "No 'root' rule found"),
        ("grammar", 'other ::= "a"', "No 'root' rule found"),
        ("grammar", "root ::= other", "Rule 'other' not found"),
        ("grammar", "start: b", 'unknown name: "b"'),
        ("grammar", 'start: "a" <|im_end|>', "special token that it can't name"),
        ("grammar", 'start: %json {"x-guidance":{"lenient":true},"not":{}}', '"not"'),
        ("grammar", "start: a\na: a", "allows no text"),
        ("grammar", 'start: A0\n' + "".join(f"A{k}: A{k + 1} A{k + 1}\n" for k in range(40))
         + 'A40: "x"', "too complex"),
    ],
)  # fmt: skip
def test_other_forms_are_refused_with_a_sentence(kind: Any, text: str, sentence: str) -> None:
    assert sentence in refusal(GrammarSource(kind, text))


@pytest.mark.parametrize("seed", range(150))
def test_whatever_a_schemas_grammar_allows_is_valid(seed: int) -> None:
    schema = random_schema(seed)
    one = matcher(schema_source(schema, disable_any_whitespace=seed % 2 == 0))
    rng = random.Random(seed)
    written = bytearray()
    while True:
        mask = int.from_bytes(one.compute_bitmask(), "little")
        token = rng.choice([token for token in range(257) if mask >> token & 1])
        if token == END:
            break
        written.append(token)
        assert one.consume_token(token), written
        assert len(written) < 5000, written
    value = json.loads(written.decode(), parse_float=Decimal)
    assert not fault(value, schema), written


def test_a_text_with_a_length_may_be_long() -> None:
    """Each character of such a text takes some states of those that a matcher may have."""
    grammar = compile_grammar(schema_source({"type": "string", "maxLength": 100_000}), TOKENIZER)
    limits = llguidance.LLParserLimits(max_lexer_states=MAX_LEXER_STATES)
    one = llguidance.LLMatcher(TOKENIZER, grammar, log_level=0, limits=limits)
    for token in b'"' + b"a" * 10_000:
        one.compute_bitmask()
        assert one.consume_token(token), one.get_error()[:100]


def test_the_engine_has_the_same_limit() -> None:
    source = Path(__file__).parents[3] / "cpp/engine/grammar.cpp"
    found = re.search(r"kMostLexerStates = ([0-9']+);", source.read_text())
    assert found
    assert int(found[1].replace("'", "")) == MAX_LEXER_STATES


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_calls_of_tools() -> None:
    def call(name: str, arguments: Any) -> CallForm:
        schema = {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        return CallForm(name, "<call>\n", schema, "\n</call>")

    def source(calls: CallsForm, special: dict[str, int] | None = None) -> GrammarSource:
        return answer_source(AnswerForm(calls=calls, special_tokens=special or {}))

    calls = [call("weather", CITY), call("time", {"type": "object"})]
    text = '<call>\n{"name":"weather","arguments":{"city":"x"}}\n</call>'
    other = '<call>\n{"name":"time","arguments":{}}\n</call>'
    one = source(CallsForm(calls, between="\n", parallel=False))
    assert allows(one, text)
    assert not allows(one, text + "\n" + other)
    assert not allows(one, text.replace("city", "town"))
    several = source(CallsForm(calls, "[", ",", "]"))
    assert allows(several, f"[{text},{other},{text}]")
    assert not allows(several, "[]")
    # A marker may be a token of the model's: by its id, of which this vocabulary has 257 last.
    marked = source(CallsForm(calls), {"<call>": SPECIAL, "</call>": SPECIAL})
    inner = list(text.removeprefix("<call>").removesuffix("</call>").encode())
    assert allows(marked, [SPECIAL, *inner, SPECIAL])
    assert not allows(marked, text)
    large = source(CallsForm(calls), {"<call>": 90000})
    assert "<[90000]>" in compile_grammar(large, TOKENIZER)
    bad = source(CallsForm([call("f", {"not": {}})]))
    assert refusal(bad).startswith("tool 'f': the JSON schema's keyword 'not'")
    deep: Any = {}
    for _ in range(2000):
        deep = {"items": deep}
    with pytest.raises(GrammarRefused):
        source(CallsForm([call("f", deep)]))
    assert "not valid JSON" in refusal(GrammarSource("answer", '{"calls":' + "[" * 10_000))


@contextlib.asynccontextmanager
async def grammars(**options: Any) -> AsyncIterator[Grammars]:
    made = Grammars(**options)
    try:
        yield made
    finally:
        await made.close()


def pid_of(made: Grammars, *, patient: bool = False) -> int:
    """The process that compiles: the quick one's is a copy of the one that is known."""
    child = (made._patient if patient else made._quick)._child
    assert child is not None
    pid = child._process.pid
    return pid if patient else int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def has_ended(pid: int) -> bool:
    """Whether a process has, though nobody may have asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


async def turns_of_the_loop(work: asyncio.Future[Any]) -> int:
    """How often others had their turn until the work was done."""
    turns = 0
    while not work.done():
        await asyncio.sleep(0.002)
        turns += 1
    return turns


def chain_of_references(length: int) -> Any:
    links = {f"a{k}": {"$ref": f"#/$defs/a{k + 1}"} for k in range(length)}
    return {"$defs": {**links, f"a{length}": {"type": "null"}}, "$ref": "#/$defs/a0"}


HOSTILE = {
    "deep": schema_source('{"items":' * 10_000 + "{}" + "}" * 10_000),
    "a chain that ends an ordinary process": schema_source(chain_of_references(490)),
    "many references": schema_source(chain_of_references(3000)),
    "a megabyte": schema_source({"enum": [f"value {k}" for k in range(70_000)]}),
    "an integer of many factors": schema_source(
        {"type": "integer", "multipleOf": 999983, "minimum": 7, "maximum": 10**15}
    ),
    "a product of alternatives": schema_source(
        {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"{side}{k}": {}}} for side in "ab"]}
                for k in range(30)
            ]
        }
    ),
    "rules on rules": GrammarSource(
        "grammar", "start: a0\n" + "".join(f"a{k}: a{k + 1}\n" for k in range(5000)) + 'a5000: "x"'
    ),
    "a lone surrogate": GrammarSource("regex", "\ud800"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_form_holds_nobody_up(name: str) -> None:
    async with grammars() as made:
        await made.grammar(schema_source(OBJECT))
        work = asyncio.ensure_future(made.grammar(HOSTILE[name]))
        with pytest.raises(GrammarRefused):
            await work
        assert await made.grammar(schema_source({"const": 1}))


async def test_one_that_takes_too_long_ends_with_its_process() -> None:
    slow = schema_source({"enum": [f"value {k}" for k in range(15_000)]})
    async with grammars(limits=GrammarLimits(run=0.001)) as made:
        work = asyncio.ensure_future(made.grammar(slow))
        turns = await turns_of_the_loop(work)
        with pytest.raises(GrammarRefused, match="too complex: it took longer than 0.001 s"):
            await work
        assert turns > 3


def slow_source(number: int) -> GrammarSource:
    return schema_source({"enum": [f"value {number} {k}" for k in range(10_000)]})


async def test_forms_that_take_long_hold_up_only_each_other() -> None:
    """Whoever sends them, also without a key: what is quick doesn't wait for them."""
    async with grammars(limits=GrammarLimits(quick=0.02, run=600, wait=600)) as made:
        await made.grammar(slow_source(0))
        os.kill(pid := pid_of(made, patient=True), signal.SIGSTOP)
        slow = [asyncio.ensure_future(made.grammar(slow_source(number))) for number in range(1, 6)]
        await asyncio.sleep(0)
        assert '"quick"' in await made.grammar(schema_source({"const": "quick"}))
        with pytest.raises(GrammarRefused, match="'not'"):
            await made.grammar(schema_source({"not": {}}))
        assert not any(one.done() for one in slow)
        os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*slow)


async def test_senders_take_turns() -> None:
    turns, order = Turns(), []

    async def work(sender: str, number: int) -> None:
        async with turns.turn(sender):
            order.append(f"{sender}{number}")
            await asyncio.sleep(0)

    tasks = [asyncio.ensure_future(work("a", number)) for number in range(4)]
    await asyncio.sleep(0)
    tasks += [asyncio.ensure_future(work(*one)) for one in (("b", 0), ("b", 1), ("c", 0))]
    await asyncio.sleep(0)
    tasks[2].cancel()
    await asyncio.wait(tasks)
    assert order == ["a0", "a1", "b0", "c0", "a3", "b1"]
    await work("d", 0)  # nobody has it any more


async def test_a_turn_that_was_given_to_who_is_gone_is_passed_on() -> None:
    turns = Turns()
    async with turns.turn("a"):
        first, second = (asyncio.ensure_future(turns._wait(sender)) for sender in "bc")
        await asyncio.sleep(0)
    first.cancel()  # it has the turn, and hasn't noticed
    with pytest.raises(asyncio.CancelledError):
        await first
    await second


async def test_what_was_made_is_remembered_and_needs_no_process() -> None:
    async with grammars() as made:
        first, again = await asyncio.gather(
            made.grammar(schema_source(OBJECT)), made.grammar(schema_source(OBJECT))
        )
        assert first == again
        with pytest.raises(GrammarRefused, match="'not'"):
            await made.grammar(schema_source({"not": {}}))
        os.kill(pid_of(made), signal.SIGSTOP)
        assert await made.grammar(schema_source(OBJECT)) == first
        with pytest.raises(GrammarRefused, match="'not'"):
            await made.grammar(schema_source({"not": {}}))


async def test_what_is_remembered_has_a_bound() -> None:
    async with grammars(cache_bytes=10_000) as made:
        for number in range(100):
            await made.grammar(schema_source({"const": number}))
            assert made._made.num_bytes <= 10_000
        assert 0 < len(made._made) < 40
        await made.grammar(GrammarSource("regex", "a" * 20_000))
        assert made._made.num_bytes == 0


async def test_a_process_that_was_killed_is_replaced() -> None:
    async with grammars() as made:
        await made.grammar(schema_source({"const": 0}))
        pid = pid_of(made)
        os.kill(pid, signal.SIGKILL)
        assert await made.grammar(schema_source({"const": 1}))
        assert pid_of(made) != pid


async def test_the_line_has_an_end() -> None:
    async with grammars(limits=GrammarLimits(wait=0.05)) as made:
        await made.grammar(schema_source({"const": -1}))
        os.kill(pid_of(made), signal.SIGSTOP)
        waiting = [
            asyncio.ensure_future(made.grammar(schema_source({"const": number})))
            for number in range(300)
        ]
        await asyncio.sleep(0.1)
        full = [one for one in waiting if one.done()]
        assert len(full) == 300 - 256
        for one in full:
            with pytest.raises(TextQueueFull):
                await one
        os.kill(pid_of(made), signal.SIGCONT)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(one) for one in results} <= {str, TextQueueFull}


async def test_a_client_that_goes_leaves_the_process_in_order() -> None:
    async with grammars() as made:
        await made.grammar(schema_source({"const": -1}))
        work = asyncio.ensure_future(made.grammar(schema_source({"const": "gone"})))
        await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait({work})
        assert '"next"' in await made.grammar(schema_source({"const": "next"}))


async def test_nothing_is_left_when_it_closes() -> None:
    async with grammars() as made:
        await made.grammar(schema_source({"const": -1}))
        os.kill(pid := pid_of(made), signal.SIGSTOP)
        work = asyncio.ensure_future(made.grammar(schema_source({"const": 1})))
        await asyncio.sleep(0.01)
        await made.close()
        with pytest.raises(WorkerLost, match="closed"):
            await work
        await until(lambda: has_ended(pid))  # the copy ends with the one that is waited for
        with pytest.raises(WorkerLost, match="closed"):
            await made.grammar(schema_source({"const": 2}))
