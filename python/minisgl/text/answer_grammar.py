"""The grammar of a whole answer (answer_form.py): thoughts first, then calls, a form, or text in
which calls stand. One grammar of Lark's holds all but the form, which it uses by its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from minisgl.text.answer_form import AnswerForm, CallForm, CallsForm, FreeText, ThoughtForm
from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.grammar_text import (
    Grammar,
    GrammarError,
    form_grammar,
    lark_text,
    one_of,
    schema_text,
    without,
)
from minisgl.text.parameter_grammar import ParameterRules
from minisgl.text.schema_check import SchemaRefused

TokenReference = Callable[[int | str], str]  # what a grammar calls tokens: an id, or "2,5-9"

_HOW = GrammarSource("json", "")  # how the JSON of arguments is written
_SPACE = r"SPACE: /[ \n]{1,4}/"  # around thoughts
_FORM = "form"  # the name of the form's grammar


def answer_grammars(form: AnswerForm, token: TokenReference) -> dict[str, Grammar]:
    """The grammars of an answer by their names, the whole answer's first. GrammarError,
    SchemaRefused.
    """
    grammars = {"answer": Grammar("lark_grammar", _Answer(form, token).lark())}
    if form.form is not None:
        grammars[_FORM] = form_grammar(form.form, form.never_begins)
    return grammars


class _Answer:
    """Writes Lark's rules."""

    def __init__(self, form: AnswerForm, token: TokenReference) -> None:
        self._form = form
        self._token = token
        self._rules = ["%llguidance {}"]

    def lark(self) -> str:
        """The whole grammar."""
        bodies = []
        free = self._form.free
        before_form = self._marked(self._form.before_form)
        if self._form.form is not None:
            bodies.append(f"{before_form} @{_FORM}")
        elif free is not None and self._form.before_form:
            self._text(free)
            bodies.append(f"{before_form} TEXT?")
        if self._form.calls is not None:
            if free is None or self._form.before_form:
                bodies.append(self._calls(self._form.calls))
            elif free.heads:
                bodies.append(self._text_before(self._form.calls, free))
            else:
                bodies.append(self._text_around(self._form.calls, free))
        self._rule("body", " | ".join(bodies))
        start = "body"
        if self._form.thoughts:
            start = self._thoughts()
        self._rule("start", start)
        return "\n".join(self._rules)

    def _rule(self, name: str, text: str) -> str:
        self._rules.append(f"{name}: {text}")
        return name

    def _marked(self, text: str) -> str:
        """A text with special tokens in it, as a sequence of Lark's."""
        special = self._form.special_tokens
        parts = [text]
        if special:
            names = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
            parts = re.split(f"({names})", text)
        written = (
            self._token(special[part]) if part in special else lark_text(part)
            for part in parts
            if part
        )
        return " ".join(written) or '""'

    def _thoughts(self) -> str:
        """What an answer is that thoughts may begin."""
        form = self._form
        self._rules.append(_SPACE)
        thoughts = [self._thought(index, one) for index, one in enumerate(form.thoughts)]
        thought = self._rule("thought", " | ".join(thoughts))
        before = f"{thought}*" if form.several_thoughts else ""
        whole = f"{before or f'{thought} SPACE?'} body"
        if not form.needs_thought and not before:
            whole += " | body"
        if form.free is not None:  # nothing has to follow
            whole += "".join(f" | {before} begun_{index}" for index in range(len(thoughts)))
        return whole

    def _thought(self, index: int, one: ThoughtForm) -> str:
        excluded = without([*one.ends, *one.excluded])
        text = f"THOUGHT_{index}"
        self._rules.append(f"{text}: /(?s:.+)/ & {excluded}")
        special = self._form.special_tokens
        ends = [self._token(special[end]) for end in one.ends if end in special]
        spelled = [end for end in one.ends if end not in special]
        shown = [
            self._token(token_id)
            for token_id in self._form.shown_tokens
            if token_id not in {special.get(text) for text in (*one.ends, *one.excluded)}
        ]
        pieces = f"({text}? ({' | '.join(shown)}))*" if shown else ""
        begun = self._rule(f"begun_{index}", f"{self._begin(index, one.begin)} {pieces} {text}?")
        alternatives = [f"{begun} ({' | '.join(ends)})"] if ends else []
        if spelled:
            end = f"END_{index}"
            self._rules.append(f"{end}: (/(?s:.*)/ & {excluded}) /{one_of(spelled)}/")
            alternatives.append(f"{self._begin(index, one.begin)} {pieces} {end}")
        return self._rule(
            f"thought_{index}", f"({' | '.join(alternatives)}) {self._marked(one.after)}"
        )

    def _begin(self, index: int, begin: str) -> str:
        """What begins a thought; spelled, it isn't another text's beginning."""
        if not begin:
            return ""
        if any(token in begin for token in self._form.special_tokens):
            return f"SPACE? {self._marked(begin)}"
        rule = f"begin_{index}[lazy]: /[ \\n]{{0,4}}{one_of([begin])}/"
        if rule not in self._rules:
            self._rules.append(rule)
        return f"begin_{index}"

    def _calls(self, calls: CallsForm, skipped: str = "") -> str:
        """Calls without the text `skipped`, with which they begin."""
        begin = calls.begin.removeprefix(skipped)
        each = "" if calls.begin else skipped  # what all calls begin with is read before each
        call = self._rule(
            "call", " | ".join(self._call(i, one, each) for i, one in enumerate(calls.calls))
        )
        more = f"({self._marked(calls.between)} {call})*" if calls.parallel and not each else ""
        return f"{self._marked(begin)} {call} {more} {self._marked(calls.end)}"

    def _call(self, index: int, one: CallForm, skipped: str = "") -> str:
        arguments = self._rule(f"arguments_{index}", self._arguments(index, one))
        before, after = one.before.removeprefix(skipped), one.after
        return self._rule(
            f"call_{index}", f"{self._marked(before)} {arguments} {self._marked(after)}"
        )

    def _arguments(self, index: int, one: CallForm) -> str:
        try:
            if one.style == "json":
                return f"%json {schema_text(one.schema, _HOW)}"
            rules = ParameterRules(f"c{index}", one.schema, _HOW)
            body = rules.xml() if one.style == "xml" else rules.python()
        except (SchemaRefused, GrammarError) as error:
            raise GrammarError(f"tool '{one.name}': {error}") from None
        self._rules += rules.rules
        return body

    def _text_around(self, calls: CallsForm, free: FreeText) -> str:
        """Any text in which calls stand behind each opener. Two TEXT never meet: together they
        could spell an opener.
        """
        opener = free.openers[0]
        form = self._calls(calls, opener)
        times = "*" if calls.parallel else "?"
        none = self._text(free)
        if opener in self._form.special_tokens:
            opening = self._token(self._form.special_tokens[opener])
            return f"(any TEXT? {opening} {form}){times} any TEXT?"
        self._rules.append(f"lead[lazy]: (/(?s:.*)/ & {none}) /{one_of([opener])}/")
        return f"(any lead {form}){times} any TEXT?"

    def _text_before(self, calls: CallsForm, free: FreeText) -> str:
        """Any text, at whose end calls may stand."""
        none = self._text(free)
        firsts, others = [], []
        for index, (one, head) in enumerate(zip(calls.calls, free.heads, strict=True)):
            others.append(self._call(index, one))
            self._rules.append(rf"lead_{index}[lazy]: (/((?s:.*)\n)?\s*/ & {none}) /{head}/")
            firsts.append(f"lead_{index} arguments_{index} {self._marked(one.after)}")
        call = self._rule("call", " | ".join(others))
        more = f"({self._marked(calls.between)} {call})*" if calls.parallel else ""
        return f"any TEXT? | any ({' | '.join(firsts)}) {more} {self._marked(calls.end)}"

    def _text(self, free: FreeText) -> str:
        """Writes what text without calls is; the expression for all that hasn't any."""
        none = without(free.openers)
        if free.like:
            none += rf" & ~/((?s:.*)\n)?\s*{free.like}(?s:.*)/"
        openers = {self._form.special_tokens.get(opener) for opener in free.openers}
        shown = [self._token(one) for one in self._form.shown_tokens if one not in openers]
        self._rule("any", f"(TEXT? ({' | '.join(shown)}))*" if shown else '""')
        self._rules.append(f"TEXT: /(?s:.+)/ & {none}")
        return none
