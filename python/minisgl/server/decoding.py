"""A request's body to its schema, with fields that the schema doesn't have.

One pass where all fields are the schema's. Otherwise what it doesn't have is judged and named, and
the body is decoded once more, by a schema that passes over such fields.
"""

from __future__ import annotations

import functools
import logging
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from minisgl.server import body_errors, errors
from minisgl.server.json_values import check_values
from minisgl.server.known_fields import KNOWN_FIELDS, KnownField

logger = logging.getLogger(__name__)

Request = TypeVar("Request", bound=msgspec.Struct)

MAX_FIELDS = 1024  # of a request, where one of them isn't its schema's
MAX_NAMED = 64  # fields that the log names; clients choose the names
MAX_SHOWN = 64  # characters of a name
MAX_SEARCHED_BYTES = 2**17  # of a body's messages, in which the names of fields are looked for


class IgnoredFields:
    """Names each field that is ignored once in the log, up to MAX_NAMED of them."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """A request has had these fields, each with its place, and they were ignored."""
        new = []
        for name in sorted(names):
            shown = ascii(name[:MAX_SHOWN])
            if shown not in self._named and len(self._named) < MAX_NAMED:
                self._named.add(shown)
                new.append(shown)
        if not new:
            return
        logger.warning("requests have fields that are ignored: %s", ", ".join(new))
        if len(self._named) == MAX_NAMED:
            logger.warning("%d ignored fields have been named: there are no more lines", MAX_NAMED)


def decode(
    decoder: msgspec.json.Decoder[Request],
    body: bytes,
    ignored: IgnoredFields,
    *,
    strict: bool = False,
) -> Request:
    """ApiError 400 for anything that isn't JSON of the decoder's type, 413 for too much of it.

    Fields that the type doesn't have are refused where they are known and change the answer, and
    with `strict` where they are unknown. All others are left out.
    """
    check_values(body)
    schema: Any = decoder.type  # a struct, which the decoder's own type doesn't say
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        if not body_errors.is_unknown_field(error):
            raise body_errors.undecodable(error, body, schema=schema) from None
    try:
        fields: dict[str, msgspec.Raw] = _fields_decoder.decode(body)
        names = _ignored_names(fields, schema, strict)
        if strict:
            own = {name: fields[name] for name in schema.__struct_fields__ if name in fields}
            request = decoder.decode(msgspec.json.encode(own))
        else:
            request = typing.cast("Request", _lenient_decoder(schema).decode(body))
            names |= _nested_names(fields, schema)
    except (ValueError, RecursionError) as error:
        raise body_errors.undecodable(error, body, schema=schema) from None
    ignored.add(names)
    return request


_fields_decoder = msgspec.json.Decoder(
    Annotated[dict[str, msgspec.Raw], Meta(max_length=MAX_FIELDS)]
)
_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])


def _ignored_names(
    fields: dict[str, msgspec.Raw], schema: type[msgspec.Struct], strict: bool
) -> set[str]:
    """The fields beside those of the schema whose values mean something and have no effect.

    ApiError 400 for one that is refused.
    """
    known_fields: Mapping[str, KnownField] = getattr(schema, "KNOWN", KNOWN_FIELDS)
    names = fields.keys() - set(schema.__struct_fields__)
    for name in list(names):
        known = known_fields.get(name)
        if known is None:
            if strict:
                raise body_errors.unknown_field(name)
        elif known.is_neutral(_value(fields[name], name)):
            names.discard(name)
        elif known.advice:
            raise errors.unsupported(name, f"'{name}' is not supported: {known.advice}.")
    return names


def _nested_names(fields: dict[str, msgspec.Raw], schema: type[msgspec.Struct]) -> set[str]:
    """Names of fields, with their places, that the objects within a request have beside those of
    their schemas.
    """
    names: set[str] = set()
    budget = MAX_SEARCHED_BYTES
    for name, inner in _nested(schema).items():
        raw = fields.get(name, msgspec.Raw(b"null"))
        is_list = bytes(raw).lstrip()[:1] == b"["
        for item in _items_decoder.decode(raw) if is_list else [raw]:
            budget -= len(bytes(item))
            if budget < 0:
                return names
            place = name + "[]" * is_list
            names.update(_names(_value(item, place), inner, place))
    return names


def _value(raw: msgspec.Raw, place: str) -> Any:
    """What stands at `place` of a request. ApiError 400 for a number that is out of range."""
    try:
        return msgspec.json.decode(raw)
    except msgspec.ValidationError as error:
        raise body_errors.undecodable(error, bytes(raw), place) from None


def _names(value: Any, schema: type[msgspec.Struct], place: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                yield from _names(item, schema, place + "[]")
    elif isinstance(value, dict):
        for name in value.keys() - set(schema.__struct_fields__):
            yield f"{place}.{name}"
        for name, inner in _nested(schema).items():
            yield from _names(value.get(name), inner, f"{place}.{name}")


@functools.cache
def _nested(schema: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The fields of a struct that hold structs which refuse unknown fields."""
    hints = typing.get_type_hints(schema)
    return {name: inner for name, hint in hints.items() if (inner := _struct_in(hint)) is not None}


def _struct_in(hint: Any) -> type[msgspec.Struct] | None:
    if _refuses(hint):
        struct: type[msgspec.Struct] = hint
        return struct
    return next(filter(None, map(_struct_in, typing.get_args(hint))), None)


def _refuses(hint: Any) -> bool:
    """Whether an annotation is a struct that refuses unknown fields."""
    return (
        isinstance(hint, type)
        and issubclass(hint, msgspec.Struct)
        and hint.__struct_config__.forbid_unknown_fields
    )


@functools.cache
def _lenient_decoder(schema: type[msgspec.Struct]) -> msgspec.json.Decoder[msgspec.Struct]:
    return msgspec.json.Decoder(_lenient(schema), strict=False)


@functools.cache
def _lenient(schema: type[msgspec.Struct]) -> type[msgspec.Struct]:
    """A subclass with the same fields that passes over those it doesn't have, as do the structs
    within it.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    fields = [
        (field.name, _with_lenient(hints[field.name]), field.default)
        for field in msgspec.structs.fields(schema)
        if field.name in _nested(schema)
    ]
    return msgspec.defstruct(
        schema.__name__, fields, bases=(schema,), kw_only=True, forbid_unknown_fields=False
    )


def _with_lenient(hint: Any) -> Any:
    """The annotation with lenient structs in the place of those that refuse unknown fields."""
    if _refuses(hint):
        return _lenient(hint)
    arguments = tuple(map(_with_lenient, typing.get_args(hint)))
    if arguments == typing.get_args(hint):
        return hint
    if typing.get_origin(hint) is list:
        return list[arguments[0]]  # type: ignore[valid-type]
    kind: Any = Annotated if typing.get_origin(hint) is Annotated else typing.Union
    return kind[arguments]
