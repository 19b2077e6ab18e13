"""Of which types a value may be, by its JSON schema. What reads values and writes them agree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

JSON_TYPES = {bool: "boolean", int: "integer", float: "number", str: "string"}
JSON_TYPES |= {dict: "object", list: "array", type(None): "null"}
MAX_REFERENCES = 8  # of which each leads to the next
MAX_REFERENCE = 1024  # characters; a longer one leads nowhere
MAX_SCHEMAS = 256  # that are looked at for one value; what goes beyond says nothing


def value_types(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The types that a schema names, of which a value has one; a string where it names none.
    `root` is the schema to which references refer.
    """
    found: set[str] = set()
    for one in _listed(schema, root):
        found.update(_named(one))
    return found or {"string"}


def _listed(schema: Any, root: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A schema and those that it lists as its alternatives or parts, to any depth, each once."""
    todo, seen = [schema], set[int]()
    for listed in todo:  # which grows meanwhile
        one = resolved(listed, root)
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        for key in ("anyOf", "oneOf", "allOf"):
            if isinstance(one.get(key), list):
                todo += one[key][: MAX_SCHEMAS - len(todo)]


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """The schema to which a schema that is a reference leads, if it leads anywhere."""
    for _ in range(MAX_REFERENCES):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or len(reference) > MAX_REFERENCE:
            return schema
        target: Any = root
        first, *names = reference.split("/")
        for name in names:
            if not isinstance(target, Mapping):
                return schema
            target = target.get(name.replace("~1", "/").replace("~0", "~"))
        if first != "#" or target is None:
            return schema
        schema = target
    return schema


def _named(schema: Mapping[str, Any]) -> Iterator[str]:
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
