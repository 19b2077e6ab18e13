"""Refusals of a body that the JSON decoder doesn't take, from what it raised."""

from __future__ import annotations

import re

import msgspec

from minisgl.server.errors import ApiError, bad_request, missing

_PLACE = re.compile(r"^(?P<what>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


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


def undecodable(error: Exception, body: bytes, place: str = "") -> ApiError:
    """From what the JSON decoder raised of a body, or of what stands at a `place` of it:
    ValidationError names the field, the others say that it isn't JSON.
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
