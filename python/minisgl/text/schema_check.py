"""A JSON schema before it becomes a grammar: what an answer can't be held to exactly is refused by
name, and what means nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from minisgl.sampling_params import shortened

MAX_DEPTH = 100  # lists and objects within each other, in a schema
MAX_REFS = 500  # references in a schema: one that leads to another goes on the stack
MAX_COUNT = 1_000_000  # of items, characters or properties
MAX_EXACT = 2**53  # a larger integer is no longer exact where numbers have 64 bits

# Keywords that say something about a value and that no grammar here is made of, with what each may
# say that means nothing.
_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "not": (False,),
    "if": (),
    "then": (),
    "else": (),
    "contains": (),
    "minContains": (),
    "maxContains": (),
    "uniqueItems": (False,),
    "propertyNames": (True, {}),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "dependencies": ({},),
    "unevaluatedItems": (True, {}),
    "unevaluatedProperties": (True, {}),
    "$dynamicRef": (),
    "$recursiveRef": (),
    "disallow": (),
    "divisibleBy": (),
    "extends": (),
    "x-guidance": (),
}
_COUNTS = ("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties")
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(_MAPS, (dict, "an object")),
    **dict.fromkeys((*_LISTS, "enum"), (list, "a list")),
    **dict.fromkeys(("$ref", "format", "pattern"), (str, "a text")),
    "type": ((str, list), "a text or a list of texts"),
    "required": (list, "a list of texts"),
}
_SINGLE = ("items", "additionalItems", "additionalProperties")
# Characters that a JSON string has only as \u and four digits. Nothing else is written in that way:
# a property's name could then be written in two ways, and pass for another one.
_ESCAPED = frozenset(map(chr, range(32))) - set("\b\f\n\r\t")


class SchemaRefused(Exception):  # noqa: N818
    """Why an answer can't be held to a schema: a sentence without a full stop."""


def check_schema(schema: Any, *, closed: bool = False) -> Any:
    """The schema as the grammar's compiler takes it. `schema` is JSON as Python's objects, and is
    changed. SchemaRefused, with the keyword and where it stands.

    `closed`: objects whose `properties` are listed have no others unless the schema speaks of them.
    """
    _check_depth(schema)
    refs = 0
    todo: list[tuple[Any, str]] = [(schema, "#")]
    while todo:
        node, path = todo.pop()
        if isinstance(node, bool):
            continue
        if not isinstance(node, dict):
            raise SchemaRefused(
                f"the JSON schema at '{path}' must be an object, true or false, got {_shown(node)}"
            )
        refs += "$ref" in node
        if refs > MAX_REFS:
            raise SchemaRefused(f"the JSON schema has more than {MAX_REFS} '$ref' (limit)")
        for key in list(node):
            _check_keyword(node, key, path)
        _check_min_properties(node, path)
        if closed and isinstance(node.get("properties"), dict):
            node.setdefault("additionalProperties", False)
        todo += _within(node, path)
    return schema


def _within(node: dict[str, Any], path: str) -> Iterator[tuple[Any, str]]:
    """The schemas in a schema, each with its place."""
    for key in _MAPS:
        if isinstance(inner := node.get(key), dict):
            yield from ((value, f"{path}/{key}/{name[:64]}") for name, value in inner.items())
    for key in _LISTS:
        if isinstance(inner := node.get(key), list):
            yield from ((value, f"{path}/{key}/{index}") for index, value in enumerate(inner))
    for key in _SINGLE:
        inner = node.get(key)
        if isinstance(inner, list):  # as drafts before 2020-12 have it
            yield from ((value, f"{path}/{key}/{index}") for index, value in enumerate(inner))
        elif inner is not None:
            yield inner, f"{path}/{key}"


def _check_keyword(node: dict[str, Any], key: str, path: str) -> None:
    value = node[key]
    if key in _KINDS:
        _check_kind(key, value, path)
    if key in _UNSUPPORTED:
        if not any(value is one or (value == one == {}) for one in _UNSUPPORTED[key]):
            raise SchemaRefused(
                f"the JSON schema's keyword '{key}' (at '{path}') is not supported: leave it out"
            )
        del node[key]
    elif key in _COUNTS:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise SchemaRefused(
                f"the JSON schema's '{key}' (at '{path}') must be an integer, got {_shown(value)}"
            )
        if not 0 <= value <= MAX_COUNT:
            raise SchemaRefused(
                f"the JSON schema's '{key}' (at '{path}') must be between 0 and {MAX_COUNT}, "
                f"got {_shown(value)}"
            )
        node[key] = int(value)
    elif key in _NUMBERS or key in ("const", "enum"):
        _check_values(key, value, path)
    elif key == "properties" and isinstance(value, dict):
        for name in value:
            _check_text("properties", name, path)


def _check_kind(key: str, value: Any, path: str) -> None:
    kind, words = _KINDS[key]
    names = value if key in ("required", "type") and isinstance(value, list) else []
    if not isinstance(value, kind) or not all(isinstance(one, str) for one in names):
        raise SchemaRefused(
            f"the JSON schema's '{key}' (at '{path}') must be {words}, got {_shown(value)}"
        )


def _check_values(key: str, value: Any, path: str) -> None:
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, list):
            todo += one
        elif isinstance(one, dict):
            todo += one.keys()
            todo += one.values()
        elif isinstance(one, str):
            _check_text(key, one, path)
        elif isinstance(one, int) and abs(one) > MAX_EXACT:
            raise SchemaRefused(
                f"the JSON schema's '{key}' (at '{path}') must have no integer beyond 2**53, "
                "which is the last that a JSON number is sure to hold exactly"
            )


def _check_text(key: str, text: str, path: str) -> None:
    if not _ESCAPED.isdisjoint(text):
        raise SchemaRefused(
            f"the JSON schema's '{key}' (at '{path}') must have no control characters but "
            f"\\b, \\f, \\n, \\r and \\t, got {_shown(text)}"
        )


def _check_min_properties(node: dict[str, Any], path: str) -> None:
    """A grammar counts properties and doesn't know whether two have one name."""
    least = node.get("minProperties", 0)
    required = node.get("required")
    sure = len({name for name in required if isinstance(name, str)}) if required else 0
    if least > max(1, sure):
        raise SchemaRefused(
            f"the JSON schema's 'minProperties' (at '{path}') above 1 is not supported, unless "
            f"'required' has as many names, got {least}: name the properties in 'required'"
        )


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return
    raise SchemaRefused(f"the JSON schema is nested too deeply (limit {MAX_DEPTH} levels)")


def _shown(value: Any) -> str:
    return shortened(ascii(value))
