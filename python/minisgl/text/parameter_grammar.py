"""Calls whose arguments are written one by one, by the JSON schema of them all: between tags as
Qwen3-Coder does, or as Python's keywords. What a form can't hold a value to is refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.grammar_text import lark_text, with_options, without
from minisgl.text.parsers.value_types import resolved, value_types
from minisgl.text.schema_check import SchemaRefused, check_schema

_TAG_NAME = re.compile(r"[^<>\n]{1,256}")
_KEYWORD = re.compile(r"\w{1,256}")
_ENDS = ("</parameter>", "</function>")  # of a value between tags
_DEFINITIONS = ("$defs", "definitions")
# Keywords that say nothing about a value.
_NOTES = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
_NOTES |= {"$comment", "$schema", "$id", "id", "$anchor", "contentMediaType", "contentEncoding"}
_OF_OBJECTS = {"type", "properties", "required", "additionalProperties", *_DEFINITIONS}
_OF_STRINGS = {"type", "enum", "const", "minLength", "maxLength", "pattern", "format"}
_DATE = (
    "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    "|02-(0[1-9]|1[0-9]|2[0-8]))"
)
_TIME = (
    r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
)
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
# Texts of a 'format', not all that it allows.
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": rf"{_BYTE}(\.{_BYTE}){{3}}",
    "email": rf"[A-Za-z0-9_+-]{{1,32}}(\.[A-Za-z0-9_+-]{{1,15}}){{0,2}}@{_HOST}(\.{_HOST}){{1,3}}",
    "uri": r"[a-z][a-z0-9+.-]{0,31}:(\/\/)?[A-Za-z0-9._~:\/?#@!$&'()*+,;=-]{1,2000}",
}
# What text begins with, or is, that would be read as a value of another type.
_LOOKS = {
    "array": r"\[(?s:.*)",
    "object": r"\{(?s:.*)",
    "integer": r"-?[0-9](?s:.*)",
    "number": r"-?[0-9](?s:.*)",
    "null": r"(null|None)\s*",
    "boolean": r"(true|false|True|False)\s*",
}
_WITH_PARTS = {"array", "object"}


@dataclass(frozen=True)
class _Parameter:
    name: str
    schema: Any
    required: bool


class ParameterRules:
    """Writes Lark's rules for the arguments of one call."""

    def __init__(self, prefix: str, schema: dict[str, Any], how: GrammarSource) -> None:
        """The names of all rules begin with `prefix`. `how`: how JSON is written. SchemaRefused."""
        self.rules: list[str] = []
        self._prefix = prefix
        self._how = how
        self._root = check_schema(schema)
        self._parameters = _parameters(self._root)

    def xml(self) -> str:
        """One after the other: <parameter=NAME>, the value and the end, on lines of their own."""
        written = []
        for index, one in enumerate(self._parameters):
            if not _TAG_NAME.fullmatch(one.name) or one.name != one.name.strip():
                raise _refused(f"can't have the name {one.name[:64]!r}", one.name)
            value = self._tagged_value(index, one)
            rule = self._rule(f"p{index}", f"{lark_text(f'<parameter={one.name}>')} {value}")
            written.append(rule if one.required else f"{rule}?")
        return " ".join(written) or '""'

    def python(self) -> str:
        """NAME=VALUE, separated by commas. What has parts is written as JSON."""
        head = tail = '""'
        for index in range(len(self._parameters) - 1, -1, -1):
            one = self._parameters[index]
            if not _KEYWORD.fullmatch(one.name):
                raise _refused(f"can't have the name {one.name[:64]!r}", one.name)
            value = self._rule(f"p{index}", f"{lark_text(one.name + '=')} {self._literal(one)}")
            first, after = f"{value} {tail}", f'", " {value} {tail}'
            if not one.required:
                first, after = f"{first} | {head}", f"{after} | {tail}"
            head = self._rule(f"head{index}", first)
            tail = self._rule(f"tail{index}", after)
        return head

    def _rule(self, name: str, text: str) -> str:
        self.rules.append(f"{self._prefix}_{name}: {text}")
        return f"{self._prefix}_{name}"

    def _json(self, schema: Any) -> str:
        if isinstance(schema, dict) and "$ref" in json.dumps(schema):
            schema = {
                **schema,
                **{key: self._root[key] for key in _DEFINITIONS if key in self._root},
            }
        return f"%json {with_options(schema, self._how)}"

    def _literal(self, one: _Parameter) -> str:
        """A value as Python writes it."""
        words = {"boolean": '"True" | "False"', "null": '"None"'}
        written = []
        for branch in self._branches(one.schema):
            plain = isinstance(branch, dict) and branch.keys() <= {"type", *_NOTES}
            kind = branch.get("type") if plain else None
            written.append(words[kind] if kind in words else self._json(branch))
        return f"({' | '.join(written)})"

    def _tagged_value(self, index: int, one: _Parameter) -> str:
        """A value up to its end and the line break behind it."""
        types = value_types(one.schema, self._root)
        end = lark_text(f"\n{_ENDS[0]}\n")
        if "string" not in types:
            return f'"\\n" {self._json(one.schema)} {end}'
        branches = self._branches(one.schema)
        strings = [branch for branch in branches if value_types(branch, self._root) == {"string"}]
        others = [branch for branch in branches if branch not in strings]
        for branch in others:
            if "string" in value_types(branch, self._root):
                said = "', '".join(sorted(branch.keys() - _NOTES))
                raise _refused(
                    f"has '{said}', by which text isn't told from other values", one.name
                )
        if any(map(_is_free, strings)) and all(map(_is_free, others)):
            # Whatever is written is of one of the types. What begins as JSON with parts is JSON:
            # what looks like the end may stand in it.
            others = [branch for branch in others if value_types(branch, self._root) & _WITH_PARTS]
            texts = ["/(?s:.*)/"]
            excluded = sorted(_LOOKS[kind] for kind in types & _WITH_PARTS)
        else:
            texts = [_string(branch, one.name) for branch in strings]
            looks = sorted({_LOOKS[kind] for kind in types - {"string"}})
            excluded = [r'"(?s:.*)', *looks] if others else []
        written = [f'"\\n" {self._text(index, texts, excluded)}'] if texts else []
        if others:
            values = " | ".join(map(self._json, others))
            written.append(f'"\\n" ({values}) {end}')
        return f"({' | '.join(written)})"

    def _text(self, index: int, texts: Sequence[str], excluded: Sequence[str]) -> str:
        """A terminal for text up to its end."""
        conditions = [f"({' | '.join(texts)})", without(_ENDS)]
        if excluded:
            conditions.append(rf"~/\s*({'|'.join(excluded)})/")
        name = f"{self._prefix}_V{index}".upper()
        self.rules.append(f"{name}: ({' & '.join(conditions)}) /\\n<\\/parameter>\\n/")
        return name

    def _branches(self, schema: Any) -> list[Any]:
        """The schemas of which a value keeps to one, as far as they are listed."""
        branches: list[Any] = []
        todo, seen = [schema], set[int]()
        while todo:
            one = resolved(todo.pop(0), self._root)
            if id(one) in seen:
                continue
            seen.add(id(one))
            said = one.keys() - _NOTES if isinstance(one, dict) else set()
            if said == {"anyOf"} or (said == {"oneOf"} and self._distinct(one["oneOf"])):
                todo = [*one[min(said)], *todo]
            elif said:
                branches += _by_types(one)
            else:
                branches.append(one)
        return branches

    def _distinct(self, schemas: Sequence[Any]) -> bool:
        """Whether no type is one of two of these."""
        types = [value_types(one, self._root) for one in schemas]
        types = [{"number" if kind == "integer" else kind for kind in one} for one in types]
        return sum(map(len, types)) == len(set().union(*types))


def _by_types(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema by the types that it lists, or by those of the values that it lists."""
    named, values = schema.get("type"), schema.get("enum")
    if isinstance(named, list):
        yield from ({**schema, "type": kind} for kind in named)
    elif named is None and isinstance(values, list):
        texts = [value for value in values if isinstance(value, str)]
        others = [value for value in values if not isinstance(value, str)]
        yield from ({**schema, "enum": some} for some in (texts, others) if some)
    else:
        yield schema


def _parameters(root: dict[str, Any]) -> list[_Parameter]:
    """Those of an object's schema, in their order. SchemaRefused for what is said about it as a
    whole.
    """
    schema = resolved(root, root)
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise SchemaRefused("the JSON schema at '#' must be that of an object")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list):
        raise SchemaRefused("the JSON schema's 'properties' must be an object, 'required' a list")
    more = [name for name in required if name not in properties]
    least, most = schema.get("minProperties", 0), schema.get("maxProperties", len(properties))
    said = schema.keys() - _OF_OBJECTS - _NOTES
    if least <= len(set(required)):
        said -= {"minProperties"}
    if most >= len(properties) + len(more):
        said -= {"maxProperties"}
    if said:
        raise SchemaRefused(
            f"the JSON schema's keyword '{min(said)}' (at '#') is not supported where "
            "a model writes arguments one by one: say it about single 'properties'"
        )
    others = schema.get("additionalProperties", {})
    if more and others is False:
        raise SchemaRefused(f"the JSON schema requires '{more[0]}', which it doesn't allow")
    named = {**properties, **{str(name): others for name in more}}
    return [_Parameter(name, one, name in required) for name, one in named.items()]


def _is_free(schema: Any) -> bool:
    """Whether a schema says no more than a type."""
    return schema is True or (isinstance(schema, dict) and schema.keys() <= {"type", *_NOTES})


def _string(schema: Any, name: str) -> str:
    """The expression for the text of a string. SchemaRefused for what text can't be held to."""
    if schema is True:
        return "/(?s:.*)/"
    if not isinstance(schema, dict):
        raise _refused("allows no value", name)
    if said := schema.keys() - _OF_STRINGS - _NOTES:
        raise _refused(f"has the keyword '{min(said)}', to which text can't be held", name)
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    conditions = [f"/(?s:.{{{least},{most}}})/"]
    values = schema.get("enum")
    if "const" in schema:
        values = [value for value in values or [schema["const"]] if value == schema["const"]]
    if values is not None:
        values = [value for value in values if isinstance(value, str)]
        if not values:
            raise _refused("allows no value", name)
        for value in values:
            if any(end in value for end in _ENDS):
                raise _refused(f"has the value {value[:64]!r}, which looks like its end", name)
        conditions.append(f"({' | '.join(map(lark_text, values))})")
    if "pattern" in schema:
        conditions.append(_pattern(schema["pattern"], name))
    if "format" in schema:
        if schema["format"] not in _FORMATS:
            raise _refused(f"has the 'format' {schema['format']!r:.64}, which has no form", name)
        conditions.append(f"/{_FORMATS[schema['format']]}/")
    return f"({' & '.join(conditions)})"


def _pattern(pattern: Any, name: str) -> str:
    """An expression that is searched for, as one for the whole text."""
    if not isinstance(pattern, str):
        raise _refused("has a 'pattern' that is no text", name)
    begins, ends = pattern.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$$", pattern))
    inner = pattern[begins : len(pattern) - ends]
    plain = re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]", "", inner, flags=re.DOTALL)
    depth, alternatives = 0, False
    for character in plain:
        depth += {"(": 1, ")": -1}.get(character, 0)
        alternatives |= character == "|" and depth == 0
    if "^" in plain or "$" in plain or "(?<" in plain or (alternatives and (begins or ends)):
        raise _refused(
            "has a 'pattern' that is not supported: '^' and '$' may stand around the whole alone",
            name,
        )
    written = re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", inner, flags=re.DOTALL)
    written = written.replace("\n", r"\n")
    return f"/{'' if begins else '(?s:.*)'}({written}){'' if ends else '(?s:.*)'}/"


def _refused(sentence: str, name: str) -> SchemaRefused:
    return SchemaRefused(
        f"the parameter '{name[:64]}' {sentence}, in the form in which the model writes calls"
    )
