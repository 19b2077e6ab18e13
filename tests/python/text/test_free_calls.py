"""The grammar of calls that may stand anywhere in an answer, where a token opens them."""

from __future__ import annotations

import llguidance

from minisgl.text.grammar_compiler import compile_grammar, make_tokenizer
from minisgl.text.grammars import CallShape, calls_source

OPENER = 257  # the special token of the vocabulary of bytes


def test_text_may_come_around_calls_that_a_token_opens() -> None:
    tokenizer = make_tokenizer()
    shape = CallShape("<call>\n", {"type": "object"}, "\n</call>", "f")
    grammar = compile_grammar(
        calls_source([shape], parallel=True, special_tokens={"<call>": OPENER}, opener="<call>"),
        tokenizer,
    )

    def allows(*parts: str | int) -> bool:
        ids = [
            token
            for part in parts
            for token in ([part] if isinstance(part, int) else part.encode())
        ]
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        return bool(matcher.try_consume_tokens(ids) == len(ids)) and bool(matcher.is_accepting())

    assert allows("Hi ", OPENER, '\n{"a": 1}\n</call>, ', OPENER, "\n{}\n</call> <cal")
    assert not allows(OPENER, "x")
    assert not allows("Hi ", OPENER)
    assert not allows("Hi <call>")  # spelled, it would be read as a call
