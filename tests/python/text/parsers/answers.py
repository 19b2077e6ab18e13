# ruff: noqa: E501
"""Answers as models write them, and what they say: one list per format."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from minisgl.text.parsers.deepseek import CALL_BEGIN, CALL_END, CALLS_BEGIN, CALLS_END, SEPARATOR

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "exact": {"type": "boolean"},
                    "where": {"type": "object"},
                    "note": {"type": ["string", "null"]},
                    "ratio": {"anyOf": [{"type": "number"}, {"type": "string"}]},
                },
            },
        },
    }
    for name in ("weather", "now")
]


@dataclass
class Answer:
    """An answer, and what it says."""

    text: str
    content: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    reasoning: str = ""
    prompt_end: str = "assistant\n"


def call(
    arguments: str = '{"city": "Paris"}', name: str = "weather", key: str = "arguments"
) -> str:
    return f'{{"name": "{name}", "{key}": {arguments}}}'


PARIS = ("weather", '{"city": "Paris"}')
NOW = ("now", "{}")
NESTED = '{"a": {"b": [1, {"c": "}]</tool_call>{[; <|call|>\\n"}]}, "q": "say \\"hi\\" \\\\"}'
UNICODE = '{"city": "Zürich 東京 🙂 \\u00e9 \\ud83d\\ude42\\t"}'
SPACED = '{ "city" :\n  "Paris" }'


def tagged(*bodies: str) -> str:
    return "\n".join(f"<tool_call>\n{body}\n</tool_call>" for body in bodies)


def bodies(text: str, more: str) -> list[Answer]:
    """What any format of objects has to take; `text` has %s for an object, `more` for two."""
    return [
        Answer(text % call(), "", [PARIS]),
        Answer("Let me look.\n\n" + text % call(), "Let me look.", [PARIS]),
        Answer(text % call(NESTED), "", [("weather", NESTED)]),
        Answer(text % call(UNICODE), "", [("weather", UNICODE)]),
        Answer(text % call(SPACED), "", [("weather", SPACED)]),
        Answer(text % call("{}", "now"), "", [NOW]),
        Answer(more % (call(), call("{}", "now")), "", [PARIS, NOW]),
        Answer(text % '{"arguments": {"city": "Paris"}, "name": "weather"}', "", [PARIS]),
        Answer(text % '{"name": "now"}', "", [NOW]),
        Answer(text % call("null", "now"), "", [NOW]),
        Answer(text % call('"{\\"city\\": \\"Paris\\"}"'), "", [PARIS]),
        Answer("Nothing to call here: 1 < 2, {braces}, [brackets].\n",
               "Nothing to call here: 1 < 2, {braces}, [brackets].\n"),
    ]  # fmt: skip


HERMES = [
    *bodies("<tool_call>\n%s\n</tool_call>", "<tool_call>\n%s\n</tool_call>\n<tool_call>%s</tool_call>"),
    Answer(f"Before\n{tagged(call())}\nbetween\n{tagged(call('{}', 'now'))}\nafter", "Beforebetweenafter", [PARIS, NOW]),
    Answer(tagged(call(name="unknown")), "", [("unknown", '{"city": "Paris"}')]),
    Answer(tagged(call() + "}"), "", [PARIS]),
    Answer(tagged(call() + "\n" + call("{}", "now")), "", [PARIS, NOW]),
    Answer(tagged(f"[{call()}, {call('{}', 'now')}]"), "", [PARIS, NOW]),
    Answer("<tool_call>no JSON</tool_call> end", "<tool_call>no JSON</tool_call> end"),
    Answer("<tool_call>{broken: 1}</tool_call>", "<tool_call>{broken: 1}</tool_call>"),
    Answer(tagged('{"city": "Paris"}'), tagged('{"city": "Paris"}')),
    Answer(f"<tool_call>oops {tagged(call())}", "<tool_call>oops", [PARIS]),
    Answer(f'<tool_call>{{"x": {tagged(call())}', '<tool_call>{"x":', [PARIS]),
    Answer(f"<tool_call>{call()}<tool_call>{call('{}', 'now')}", "", [PARIS, NOW]),
    Answer(f"<tool_call>{call()}", "", [PARIS]),
    Answer('<tool_call>\n{"name": "weather", "arguments": {"city": "Pa', "", [("weather", '{"city": "Pa')]),
    Answer('<tool_call>\n{"name": "weather", "argu', "", [("weather", "")]),
    Answer('<tool_call>\n{"name": "wea', '<tool_call>\n{"name": "wea'),
    Answer("The tag <tool_cal", "The tag <tool_cal"),
    Answer("  indented\n", "  indented\n"),
]  # fmt: skip


def function(name: str, *parameters: tuple[str, str]) -> str:
    lines = [f"<parameter={key}>\n{value}\n</parameter>" for key, value in parameters]
    return (
        "<tool_call>\n"
        + "\n".join([f"<function={name}>", *lines, "</function>"])
        + "\n</tool_call>"
    )


LITERAL = 'x = "</parameter>"\nif a < b: print("<function=f>")\n'
QWEN3_CODER = [
    Answer(function("weather", ("city", "Paris")), "", [PARIS]),
    Answer("I'll look.\n" + function("weather", ("city", "Paris")) + "\nDone.", "I'll look.Done.", [PARIS]),
    Answer(function("now"), "", [NOW]),
    Answer(function("weather", ("city", "5"), ("days", "5"), ("exact", "True")), "",
           [("weather", '{"city": "5", "days": 5, "exact": true}')]),
    Answer(function("weather", ("where", '{"lat": 1.5, "n": [1]}'), ("days", "many")), "",
           [("weather", '{"where": {"lat": 1.5, "n": [1]}, "days": "many"}')]),
    Answer(function("weather", ("note", "null"), ("ratio", "0.50"), ("ratio", "5"), ("ratio", "half")), "",
           [("weather", '{"note": null, "ratio": 0.50, "ratio": 5, "ratio": "half"}')]),
    Answer(function("weather", ("note", "17"), ("other", "17"), ("days", "NaN")), "",
           [("weather", '{"note": "17", "other": "17", "days": "NaN"}')]),
    Answer(function("weather", ("city", LITERAL)), "", [("weather", f'{{"city": {json.dumps(LITERAL)}}}')]),
    Answer(function("weather", ("city", 'é 東京 🙂 "q" \\ \t')), "",
           [("weather", '{"city": "é 東京 🙂 \\"q\\" \\\\ \\t"}')]),
    Answer(function("weather", ("city", "")), "", [("weather", '{"city": ""}')]),
    Answer(function("now") + "\n" + function("weather", ("city", "Paris")), "", [NOW, PARIS]),
    Answer("<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>", "", [PARIS]),
    Answer("<tool_call>\n<function=weather>\n<parameter=city>\nParis\n</function>\n</tool_call>", "", [PARIS]),
    Answer("<tool_call>\n<function=weather>\n<parameter=city>\nPar", "", [("weather", '{"city": "Par')]),
    Answer("<tool_call>\n<function=weather>\n<parameter=days>\n1", "", [("weather", '{"days": 1')]),
    Answer("<tool_call>text</tool_call>", "<tool_call>text</tool_call>"),
    Answer("<function=f> is a tag, <tool_call> too", "<function=f> is a tag, <tool_call> too"),
    Answer("a <function=we", "a <function=we"),
]  # fmt: skip

LLAMA3 = [
    Answer(call(key="parameters"), "", [PARIS]),
    Answer(f"<|python_tag|>{call(key='parameters')}", "", [PARIS]),
    Answer(f"{call(key='parameters')}; {call('{}', 'now', 'parameters')}", "", [PARIS, NOW]),
    Answer(f"<|python_tag|>{call()};{call('{}', 'now')}", "", [PARIS, NOW]),
    Answer(f"Look:\n{call(NESTED)}\nSo.", "Look:So.", [("weather", NESTED)]),
    Answer('{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    Answer(f"[{call()}, {call('{}', 'now')}]", "", [PARIS, NOW]),
    Answer(call(name="stranger"), call(name="stranger")),
    Answer('{"name": "weather", "age": 3}', '{"name": "weather", "age": 3}'),
    Answer('{"title": "x", "body": [1, 2]}\n', '{"title": "x", "body": [1, 2]}\n'),
    Answer("<|python_tag|>import math\nmath.pi", "<|python_tag|>import math\nmath.pi"),
    Answer(f"An example: {call()}", f"An example: {call()}"),
    Answer(f"{call()} ; done", " ; done", [PARIS]),
    Answer('{"name": "weather", "parameters": {"city": "Pa', "", [("weather", '{"city": "Pa')]),
    Answer('{"name": "weather"', "", [("weather", "")]),
    Answer('{"name": "wea', '{"name": "wea'),
    Answer("{\n{\n{}", "{\n{\n{}"),
]

PYTHONIC = [
    Answer('[weather(city="Paris")]', "", [PARIS]),
    Answer("[weather(city='Paris'), now()]", "", [PARIS, NOW]),
    Answer("<|python_start|>[now()]<|python_end|>", "", [NOW]),
    Answer("Well:\n[now()]\nfine", "Well:fine", [NOW]),
    Answer("[weather(city='a\\'b\\x41\\u00e9\\n\\q\"', days=-3, exact=True, note=None)]", "",
           [("weather", '{"city": "a\'bAé\\n\\\\q\\"", "days": -3, "exact": true, "note": null}')]),
    Answer("[weather(where={'lat': 1.5, 2: [1, (2, 3)], 'e': {}}, days=0x10,)]", "",
           [("weather", '{"where": {"lat": 1.5, "2": [1, [2, 3]], "e": {}}, "days": 16}')]),
    Answer("[weather(city='''two\nlines ]) ''', note='')]", "",
           [("weather", '{"city": "two\\nlines ]) ", "note": ""}')]),
    Answer("[weather(city='東京 🙂 \\ud83d')]", "", [("weather", '{"city": "東京 🙂 \\ud83d"}')]),
    Answer("[1, 2, 3]", "[1, 2, 3]"),
    Answer("[a link](http://x) and [see(above)]", "[a link](http://x) and [see(above)]"),
    Answer("[stranger(a=1)]", "[stranger(a=1)]"),
    Answer("[weather(Paris)]", "[weather(Paris)]"),
    Answer("a list [now()]", "a list [now()]"),
    Answer("[now(), and so on]", ", and so on]", [NOW]),
    Answer("[weather(city=Paris)]", "Paris)]"[5:], [("weather", '{"city": ')]),
    Answer("[weather(city='Pa", "", [("weather", '{"city": "Pa')]),
    Answer("[weather(", "", [("weather", "")]),
    Answer("[wea", "[wea"),
]  # fmt: skip

MISTRAL = [
    *bodies("[TOOL_CALLS][%s]", "[TOOL_CALLS] [%s, %s]"),
    Answer('[TOOL_CALLS]weather[ARGS]{"city": "Paris"}', "", [PARIS]),
    Answer('Hm.[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]now[ARGS]{}', "Hm.", [PARIS, NOW]),
    Answer('[TOOL_CALLS]weather{"city": "Paris"}', "", [PARIS]),
    Answer('[TOOL_CALLS]weather[CALL_ID]abc123XYZ[ARGS]{"city": "Paris"}', "", [PARIS]),
    Answer(f"[TOOL_CALLS]weather[ARGS]{NESTED} bye", " bye", [("weather", NESTED)]),
    Answer("[TOOL_CALLS]weather[ARGS]", "", [("weather", "")]),
    Answer('[TOOL_CALLS]weather[ARGS]{"ci', "", [("weather", '{"ci')]),
    Answer("[TOOL_CALLS] are announced so", "[TOOL_CALLS] are announced so"),
    Answer("[TOOL_CALLS]wea", "[TOOL_CALLS]wea"),
    Answer("[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]"),
]  # fmt: skip


def deepseek(*calls: tuple[str, str], old: bool = True) -> str:
    def one(name: str, arguments: str) -> str:
        if old:
            return f"{CALL_BEGIN}function{SEPARATOR}{name}\n```json\n{arguments}\n```{CALL_END}"
        return f"{CALL_BEGIN}{name}{SEPARATOR}{arguments}{CALL_END}"

    return CALLS_BEGIN + ("\n" if old else "").join(one(*call) for call in calls) + CALLS_END


DEEPSEEK = [
    answer
    for old in (True, False)
    for answer in (
        Answer(deepseek(PARIS, old=old), "", [PARIS]),
        Answer("Look.\n" + deepseek(PARIS, NOW, old=old) + "\nDone", "Look.Done", [PARIS, NOW]),
        Answer(deepseek(("weather", NESTED), old=old), "", [("weather", NESTED)]),
        Answer(deepseek(("weather", UNICODE), old=old), "", [("weather", UNICODE)]),
        Answer(deepseek(("function", "{}"), old=old), "", [("function", "{}")]),
        Answer(deepseek(("now", ""), old=old), "", [NOW]),
        Answer(deepseek(("stranger", SPACED), old=old), "", [("stranger", SPACED)]),
        Answer(deepseek(PARIS, old=old)[: -len(CALL_END + CALLS_END)], "", [PARIS]),
    )
] + [
    Answer(f"{CALLS_BEGIN} nothing", f"{CALLS_BEGIN} nothing"),
    Answer(f"{CALLS_BEGIN}{CALL_BEGIN}a b", f"{CALLS_BEGIN}{CALL_BEGIN}a b"),
    Answer(f"{CALL_BEGIN}now{SEPARATOR}{{}}{CALL_END}", "", [NOW]),
    Answer(f"{CALL_BEGIN}function{SEPARATOR}no", f"{CALL_BEGIN}function{SEPARATOR}no"),
    Answer(f'{CALL_BEGIN}weather{SEPARATOR}{{"ci', "", [("weather", '{"ci')]),
]

GRANITE = [
    *bodies("<|tool_call|>[%s]", "<|tool_call|>[%s, %s]"),
    *bodies("<tool_call>%s</tool_call>", "<tool_call>%s</tool_call>\n<tool_call>%s</tool_call>"),
    Answer(f"[{call()}]", "", [PARIS]),
    Answer(f"[{call(name='stranger')}]", f"[{call(name='stranger')}]"),
    Answer("<|tool_call|>none", "<|tool_call|>none"),
    Answer("[1] a source", "[1] a source"),
]

PLAIN = [
    Answer(call(), "", [PARIS]),
    Answer(f"```json\n{call()}\n```", "```json```", [PARIS]),
    Answer(f"{call()}\n{call('{}', 'now')}", "", [PARIS, NOW]),
    Answer(f"[{call(key='parameters')}, {call('{}', 'now')}]", "", [PARIS, NOW]),
    Answer(call(NESTED), "", [("weather", NESTED)]),
    Answer(call(UNICODE), "", [("weather", UNICODE)]),
    Answer(call(name="stranger"), call(name="stranger")),
    Answer('{"a": 1}', '{"a": 1}'),
    Answer(f"[{call()}, 5]", ", 5]", [PARIS]),
    Answer('{"name": "now", "arguments": 5}', '{"name": "now", "arguments": 5}'),
    Answer('{"name": "weather", "arguments": {"city": [[', "", [("weather", '{"city": [[')]),
]

ANALYSIS = "<|channel|>analysis<|message|>%s<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>%s<|return|>"
COMMENTARY = (
    "<|start|>assistant<|channel|>commentary to=functions.%s <|constrain|>json<|message|>%s<|call|>"
)
HARMONY = [
    Answer(ANALYSIS % "Hm." + FINAL % "Hello.", "Hello.", [], "Hm."),
    Answer(ANALYSIS % "Hm." + COMMENTARY % PARIS, "", [PARIS], "Hm."),
    Answer((ANALYSIS % "Hm." + COMMENTARY % PARIS).removesuffix("<|call|>"), "", [PARIS], "Hm."),
    Answer(" to=functions.weather<|channel|>commentary json<|message|>" + PARIS[1], "", [PARIS]),
    Answer("<|channel|>commentary<|message|>First.<|end|>" + COMMENTARY % NOW, "First.", [NOW]),
    Answer(COMMENTARY % ("weather", NESTED.replace("<|call|>", "")) + COMMENTARY % NOW, "",
           [("weather", NESTED.replace("<|call|>", "")), NOW]),
    Answer(COMMENTARY % ("weather", UNICODE), "", [("weather", UNICODE)]),
    Answer(COMMENTARY % ("now", ""), "", [NOW]),
    Answer("<|channel|>analysis to=browser.search code<|message|>{}<|call|>", "", [("browser.search", "{}")]),
    Answer(ANALYSIS % "a <tool_call> {1} <| b", "", [], "a <tool_call> {1} <| b"),
    Answer("<|channel|>analysis<|message|>cut of", "", [], "cut of"),
    Answer("<|channel|>anal", ""),
    Answer("No markers <|at all", "No markers <|at all"),
    Answer(" to=nobody, as plain text", " to=nobody, as plain text"),
    Answer("<|channel|>final<|message|>x = 1\n\n    y", "x = 1\n\n    y"),
]  # fmt: skip

OPEN = "assistant\n<think>\n"
THINK = [
    Answer("<think>\nHm.\n</think>\n\nHello.", "Hello.", [], "Hm."),
    Answer("Hm.\n</think>\n\nHello.", "Hello.", [], "Hm.", OPEN),
    Answer("<think>\nHm.\n</think>\nHello.", "Hello.", [], "Hm.", OPEN),
    Answer(f"<think>\nHm.\n</think>\n\n{tagged(call())}", "", [PARIS], "Hm."),
    Answer(f"<think>\nsay {tagged(call())}?\n</think>\n\nNo.", "No.", [], f"say {tagged(call())}?"),
    Answer("<think>\n\n</think>\n\nHello <think>.", "Hello <think>."),
    Answer("<think>\nwithout an end </thin", "", [], "without an end </thin"),
    Answer("without an end\n", "", [], "without an end\n", OPEN),
    Answer("Hello.", "Hello.", [], "", "<think>\n\n</think>\n\n"),
    Answer("Plain <think>no</think>", "Plain <think>no</think>"),
    Answer("<think>a < b << c <</think>  x\n", "  x\n", [], "a < b << c <"),
    Answer("\n<think>a</think>\n\n    code", "    code", [], "a"),
    Answer("\n <thing>", "\n <thing>"),
]

R1 = [
    Answer("Hm.\n</think>\n\nHello.", "Hello.", [], "Hm."),
    Answer("<think>\nHm.\n</think>\n\nHello.", "Hello.", [], "Hm."),
    Answer("never ends", "", [], "never ends"),
    Answer("Hello.", "Hello.", [], "", "Assistant></think>"),
]

GRANITE_THINK = [
    Answer("Here is my thought process: Hm. Here is my response: Hi.", " Hi.", [], " Hm."),
    Answer("Here's my thought process:\nHm.\n\nHere's my response:\nHi.", "Hi.", [], "Hm."),
    Answer("Here is my thought process: Hm.\nHere's my response:\nHi.", "Hi.", [], " Hm."),
    Answer("<think>Hm.</think>\n<response>Hi.</response>", "Hi.", [], "Hm."),
    Answer("<think>Hm.</think>Hi. <res", "Hi. <res", [], "Hm."),
    Answer("Here is my thought", "Here is my thought"),
    Answer("Here is my cat. Here is my response: 1", "Here is my cat. Here is my response: 1"),
    Answer(f"<think>Hm.</think>\n<|tool_call|>[{call()}]", "", [PARIS], "Hm."),
    Answer("<think>Hm.</think><response>a </response> b", "a b", [], "Hm."),
]

MISTRAL_THINK = [
    Answer("[THINK]Hm.[/THINK]Hi.", "Hi.", [], "Hm."),
    Answer('[THINK]Hm.[/THINK][TOOL_CALLS]weather[ARGS]{"city": "Paris"}', "", [PARIS], "Hm."),
]

# The tools' and the reasoning's parser, and answers.
CORPUS: dict[tuple[str | None, str | None], list[Answer]] = {
    ("hermes", None): HERMES,
    ("qwen3_coder", None): QWEN3_CODER,
    ("llama3_json", None): LLAMA3,
    ("pythonic", None): PYTHONIC,
    ("mistral", None): MISTRAL,
    ("deepseek_v3", None): DEEPSEEK,
    ("deepseek_v31", None): DEEPSEEK,
    ("granite", None): GRANITE,
    ("json", None): PLAIN,
    ("openai", "gpt_oss"): HARMONY,
    ("hermes", "qwen3"): THINK,
    ("hermes", "deepseek_r1"): R1,
    ("granite", "granite"): GRANITE_THINK,
    ("mistral", "mistral"): MISTRAL_THINK,
}
ALL = [
    (tools, reasoning, answer)
    for (tools, reasoning), answers in CORPUS.items()
    for answer in answers
]
