"""Random JSON schemas that every answer to them keeps short, and a slow, obvious check of a value
against one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

NAMES = ("id", "name", "größe", "a b", 'q"', "kind", "tags", "x\ny", "0")


def random_schema(seed: int, depth: int = 3, names: Sequence[str] = NAMES) -> dict[str, Any]:
    """The schema of a seed; `names` are those of the properties of its values."""
    rng = random.Random(seed)
    schema = _object(rng, depth, names)
    if rng.random() < 0.3:  # what it refers to may refer to itself, within an array that is short
        schema["properties"]["ref"] = {"$ref": "#/$defs/node"}
        schema["required"].append("ref")
        schema["$defs"] = {
            "node": {
                "type": "object",
                "properties": {
                    "value": _scalar(rng),
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]},
                },
                "required": ["value"],
                "additionalProperties": False,
            },
            "leaf": {"enum": [1, -2.5, "leaf", None, [True], {"a": "b"}]},
        }
    return schema


def _schema(rng: random.Random, depth: int) -> dict[str, Any]:
    kinds = [_scalar, _scalar, _choice]
    if depth:
        kinds += [lambda rng: _object(rng, depth - 1), lambda rng: _array(rng, depth - 1)]
    return rng.choice(kinds)(rng)


def _object(rng: random.Random, depth: int, names: Sequence[str] = NAMES) -> dict[str, Any]:
    names = rng.sample(names, rng.randint(1, 4))
    return {
        "type": "object",
        "title": "not a constraint",
        "properties": {name: _schema(rng, depth) for name in names},
        "required": [name for name in names if rng.random() < 0.7],
        "additionalProperties": False,
    }


def _array(rng: random.Random, depth: int) -> dict[str, Any]:
    least = rng.randint(0, 2)
    schema = {
        "type": "array",
        "items": _schema(rng, depth),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }
    if rng.random() < 0.2:
        schema["prefixItems"] = [_scalar(rng)]
        schema["maxItems"] = max(1, schema["maxItems"])
    return schema


def _scalar(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-1000, 1000)
    least = rng.randint(0, 3)
    return rng.choice(
        [
            {"type": "string", "minLength": least, "maxLength": least + rng.randint(0, 8)},
            {"type": "string", "pattern": r"^[a-c]{1,3}-\d{2}$"},
            {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)},
            {"type": "integer", "exclusiveMinimum": low, "maximum": low + 50, "multipleOf": 7},
            {"type": "number", "minimum": low, "maximum": low + 1, "multipleOf": 0.25},
            {"type": "boolean"},
            {"type": "null"},
            {"type": ["integer", "null"], "minimum": 0, "maximum": 9},
            {"const": rng.choice(["fixed", 3, True, None])},
        ]
    )


def _choice(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        [
            {"enum": ["red", "green", "blü", 'quo"ted', 17, None]},
            {"oneOf": [{"type": "boolean"}, {"type": "string", "maxLength": 2}]},
            {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"kind": {"const": kind}, "n": _scalar(rng)},
                        "required": ["kind", "n"],
                        "additionalProperties": False,
                    }
                    for kind in ("cat", "dog")
                ]
            },
            {"anyOf": [_scalar(rng), _scalar(rng)]},
            {"allOf": [{"type": "string", "maxLength": 5}, {"minLength": 2}]},
        ]
    )


def fault(value: Any, schema: Any, root: Any = None) -> str:
    """Where a value isn't the schema's, or "". For the keywords above; `value` has no floats: see
    json.loads's parse_float.
    """
    root = schema if root is None else root
    if isinstance(schema, bool):
        return "" if schema else "nothing is allowed"
    for keyword, rule in schema.items():
        if not _CHECKS.get(keyword, _unknown)(value, rule, schema, root):
            return f"{keyword} {rule!r} of {value!r}"
    return ""


def _unknown(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    raise AssertionError("a keyword that is not checked")


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, int | Decimal) and not isinstance(value, bool)
    kinds = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}
    return isinstance(value, kinds[kind])


def _same(value: Any, other: Any) -> bool:
    if isinstance(other, float):
        other = Decimal(str(other))
    if isinstance(other, list):
        return (
            isinstance(value, list) and len(value) == len(other) and all(map(_same, value, other))
        )
    return isinstance(value, bool) == isinstance(other, bool) and bool(value == other)


def _ok(value: Any, schema: Any, root: Any) -> bool:
    return not fault(value, schema, root)


def _items(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    skipped = len(schema.get("prefixItems", ()))
    return not isinstance(value, list) or all(_ok(one, rule, root) for one in value[skipped:])


def _resolve(reference: str, root: Any) -> Any:
    for part in reference.removeprefix("#/").split("/"):
        root = root[part]
    return root


def _number(value: Any) -> bool:
    return _is(value, "number")


_CHECKS: dict[str, Any] = {
    "title": lambda v, r, s, root: True,
    "$defs": lambda v, r, s, root: True,
    "$ref": lambda v, r, s, root: _ok(v, _resolve(r, root), root),
    "type": lambda v, r, s, root: any(_is(v, one) for one in ([r] if isinstance(r, str) else r)),
    "const": lambda v, r, s, root: _same(v, r),
    "enum": lambda v, r, s, root: any(_same(v, one) for one in r),
    "allOf": lambda v, r, s, root: all(_ok(v, one, root) for one in r),
    "anyOf": lambda v, r, s, root: any(_ok(v, one, root) for one in r),
    "oneOf": lambda v, r, s, root: sum(_ok(v, one, root) for one in r) == 1,
    "properties": lambda v, r, s, root: (
        not isinstance(v, dict) or all(_ok(v[n], r[n], root) for n in r if n in v)
    ),
    "additionalProperties": lambda v, r, s, root: (
        r is not False or not isinstance(v, dict) or v.keys() <= s["properties"].keys()
    ),
    "required": lambda v, r, s, root: not isinstance(v, dict) or v.keys() >= set(r),
    "items": _items,
    "prefixItems": lambda v, r, s, root: (
        not isinstance(v, list) or all(_ok(*pair, root) for pair in zip(v, r, strict=False))
    ),
    "minItems": lambda v, r, s, root: not isinstance(v, list) or len(v) >= r,
    "maxItems": lambda v, r, s, root: not isinstance(v, list) or len(v) <= r,
    "minLength": lambda v, r, s, root: not isinstance(v, str) or len(v) >= r,
    "maxLength": lambda v, r, s, root: not isinstance(v, str) or len(v) <= r,
    "pattern": lambda v, r, s, root: not isinstance(v, str) or re.search(r, v) is not None,
    "minimum": lambda v, r, s, root: not _number(v) or v >= r,
    "maximum": lambda v, r, s, root: not _number(v) or v <= r,
    "exclusiveMinimum": lambda v, r, s, root: not _number(v) or v > r,
    "multipleOf": lambda v, r, s, root: not _number(v) or Decimal(v) % Decimal(str(r)) == 0,
}
