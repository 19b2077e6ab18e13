"""Refusals of a body that the JSON decoder doesn't take, from what it raised."""

from __future__ import annotations

import functools
import re
import typing
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from minisgl.sampling_params import shortened
from minisgl.server.errors import ApiError, bad_request, missing

_PLACE = re.compile(r"^(?P<what>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)
# A range or a length that a value isn't in; the decoder doesn't say what the value is.
_RANGE = re.compile(r"^Expected `\w+` (?P<of_length>of length )?[<>]=? [^ ]+$")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_ENUM = "Invalid enum value "
MAX_REREAD_BYTES = 2**17  # of a body, which is read again for the value at fault
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_text_decoder = msgspec.json.Decoder(str)


def unknown_field(path: str) -> ApiError:
    """400: a field that neither the schema nor OpenAI's or vLLM's API has."""
    shown = path[:200]
    return ApiError(
        400,
        f"Unrecognized request argument supplied: {shown}",
        param=shown,
        code="unknown_parameter",
    )


def is_unknown_field(error: Exception) -> bool:
    """Whether the JSON decoder raised it for a field that its type doesn't have."""
    return isinstance(error, msgspec.ValidationError) and bool(_UNKNOWN.match(_placed(error)[0]))


def _placed(error: msgspec.ValidationError) -> tuple[str, str]:
    """What is wrong, and the path of what it is about: "" for the whole body."""
    place = _PLACE.match(str(error))
    if place is None:
        return str(error), ""
    return ("key: " if place["key"] else "") + place["what"], place["path"]


# Half of a pair of surrogates without the other: JSON's grammar allows it, and no text has it.
_HALF_CHARACTER = re.compile(
    rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..)\\u[dD][c-fC-F].."
)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def undecodable(
    error: Exception, body: bytes, place: str = "", *, schema: type[msgspec.Struct] | None = None
) -> ApiError:
    """From what the JSON decoder raised of a body, or of what stands at a `place` of it:
    ValidationError names the field, the others say that it isn't JSON. `schema`: the body's, which
    says what a field may be.
    """
    if isinstance(error, RecursionError):
        return bad_request("The request body is nested too deeply.", code="invalid_json")
    if not isinstance(error, msgspec.ValidationError):
        if not _is_utf8(body):
            return bad_request("The request body is not valid UTF-8.", code="invalid_json")
        if half := _HALF_CHARACTER.search(body):
            return bad_request(
                "A text in the request body has half of a character: the lone surrogate "
                f"{half[0][:6].decode(errors='replace')}.",
                code="invalid_json",
            )
        return bad_request("The request body is not valid JSON.", code="invalid_json")
    what, path = _placed(error)
    what += _got(what, path, body)
    if what.startswith(_ENUM):
        what = _ENUM + shortened(what.removeprefix(_ENUM))
        if schema is not None:
            allowed = map(repr, _literals(schema, path))
            what += f": it must be {' or '.join(allowed)}"
    path = place + path
    if found := _UNKNOWN.match(what):
        return unknown_field(f"{path}.{found['name']}" if path else found["name"])
    if found := _MISSING.match(what):
        name = f"{path}.{found['name']}" if path else found["name"]
        return missing(name)
    what = what.replace("`", "'")
    if not path:
        return bad_request(f"The request body has the wrong form: {what}.")
    return bad_request(f"Invalid value for '{path}': {what}.", param=path)


def _got(what: str, path: str, body: bytes) -> str:
    """The value that isn't in its range, to stand behind the range; "" where it can't be found, or
    only with a search through much.
    """
    found = _RANGE.match(what)
    if found is None or len(body) > MAX_REREAD_BYTES:
        return ""
    try:
        value = _value_at(path, msgspec.Raw(body))
        if found["of_length"]:
            return f", got {_length(bytes(value))}"
    except (LookupError, ValueError, RecursionError):
        return ""
    return f", got {shortened(bytes(value).decode(errors='replace'))}"


def _value_at(path: str, value: msgspec.Raw) -> msgspec.Raw:
    """What stands at a path. LookupError where the path has a key that the decoder doesn't tell."""
    if "[...]" in path:
        raise LookupError(path)
    for name, index in _STEP.findall(path):
        value = (
            _object_decoder.decode(value)[name] if name else _list_decoder.decode(value)[int(index)]
        )
    return value


def _length(value: bytes) -> int:
    kind = value.lstrip()[:1]
    decoder: msgspec.json.Decoder[Any] = _text_decoder
    if kind in b"[{":
        decoder = _list_decoder if kind == b"[" else _object_decoder
    return len(decoder.decode(value))


def _literals(schema: type[msgspec.Struct], path: str) -> Iterator[Any]:
    """What may stand at a path of a body, where that is one of some values."""
    hints: list[Any] = [schema]
    for name, _ in _STEP.findall(path):
        if name:
            fields = [_types(struct) for hint in hints for struct in _structs(hint)]
            hints = [types[name] for types in fields if name in types]
    for hint in hints:
        yield from _allowed(hint)


@functools.cache
def _types(schema: type[msgspec.Struct]) -> dict[str, Any]:
    """Those of a struct's fields."""
    return typing.get_type_hints(schema)


def _structs(hint: Any) -> Iterator[type[msgspec.Struct]]:
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        yield hint
    for argument in typing.get_args(hint):
        yield from _structs(argument)


def _allowed(hint: Any) -> Iterator[Any]:
    if typing.get_origin(hint) is Literal:
        yield from typing.get_args(hint)
        return
    for argument in typing.get_args(hint):
        yield from _allowed(argument)
