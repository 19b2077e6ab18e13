"""Errors of the shared checks, about what a client has sent under other names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from minisgl.server.errors import ApiError

# Where a check sees a fault -> where it stands in the request.
Places = Sequence[tuple[re.Pattern[str], str]]


def renamed(error: ApiError, places: Places) -> ApiError:
    """The error with the names that the client knows, in its sentence, too."""
    given = error.param
    if given is None or (param := _renamed(given, places)) == given:
        return error
    message = error.message
    for name in (given, re.split(r"[.\[]", given)[0]):
        message = message.replace(f"'{name}'", f"'{_renamed(name, places)}'")
    return ApiError(
        error.status,
        message,
        type=error.type,
        param=param,
        code=error.code,
        headers=error.headers,
        prompt_tokens=error.prompt_tokens,
    )


def _renamed(given: str, places: Places) -> str:
    for place, name in places:
        given = place.sub(name, given)
    return given
