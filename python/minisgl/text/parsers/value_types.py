"""Of which types a value may be, by its JSON schema. What reads values and writes them agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
JSON_TYPES |= {dict: "object", list: "array", type(None): "null"}
MAX_DEPTH = 8  # schemas within each other, and references to references


def value_types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema names, of which a value has one; a string where it names none.
    `root` is the schema to which references refer.
    """
    return set(_types(schema, root, 0)) or {"string"}


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema to which a schema that is a reference leads, if it leads anywhere."""
    for _ in range(MAX_DEPTH):
        if not isinstance(schema, dict) or not isinstance(schema.get("$ref"), str):
            return schema
        target: Any = root
        first, *names = schema["$ref"].split("/")
        for name in names:
            key = name.replace("~1", "/").replace("~0", "~")
            target = target.get(key) if isinstance(target, Mapping) else None
        if first != "#" or target is None:
            return schema
        schema = target
    return schema


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    schema = resolved(schema, root)
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return
    named = schema.get("type")
    if isinstance(named, str):
        yield named
    elif isinstance(named, list):
        yield from (one for one in named if isinstance(one, str))
    elif isinstance(schema.get("enum"), list):
        yield from (JSON_TYPES.get(type(one), "string") for one in schema["enum"])
    elif "const" in schema:
        yield JSON_TYPES.get(type(schema["const"]), "string")
    elif "properties" in schema or "$ref" in schema:
        yield "object"
    elif "items" in schema:
        yield "array"
    for key in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(key) or () if isinstance(schema.get(key), list) else ():
            yield from _types(one, root, depth + 1)
