"""How an option describes itself in one field, and what is wrong with a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import field
from typing import Any

DAY = 86400.0  # seconds


class OptionError(ValueError):
    """An option has a value that it can't have. `option` is the field's name, `sentence` what is
    wrong with it.
    """

    def __init__(self, option: str, sentence: str) -> None:
        super().__init__(f"{option} {sentence}")
        self.option = option
        self.sentence = sentence


def option(
    default: Any,
    help: str,
    *,
    group: str = "engine",
    bounds: tuple[float, float] = (0, 2**31 - 1),
    choices: Sequence[str] = (),
    metavar: str = "",
    flag: str = "",
    alias: str = "",
    empty_is_none: bool = True,
    secret: bool = False,
) -> Any:
    """A field that describes itself: its default, its help, its group on the command line, the
    bounds of a number or the choices of a word. `flag` where it isn't the field's name, `alias` for
    a second one. The default
    () stands for any number of texts. The empty text is None where the default is None, and none of
    several texts, unless `empty_is_none` is false. A secret isn't shown.
    """
    described: dict[str, Any] = {"help": help, "group": group, "metavar": metavar}
    described |= {"flag": flag, "alias": alias}
    if choices:
        described["choices"] = choices
    elif isinstance(default, (int, float)) and not isinstance(default, bool):
        described["bounds"] = bounds
    described["empty_is_none"] = default in (None, ()) and empty_is_none
    return field(default=default, metadata=described, repr=not secret)


def check_text(name: str, value: object, *, shown: bool) -> None:
    """Bytes of the command line or the environment that are not UTF-8 arrive as halves of pairs of
    surrogates, which nothing can write or send. Other values than texts pass.
    """
    for text in value if isinstance(value, tuple) else (value,):
        try:
            str(text).encode()
        except UnicodeEncodeError:
            got = f", got {text!a}" if shown else ""
            raise OptionError(name, f"must be UTF-8{got}") from None


def check_bounds(name: str, value: object, low: float, high: float) -> None:
    """OptionError for anything but a number within the bounds, both included."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise OptionError(name, f"must be a number, got {value!r}")
    if not (low <= value <= high):  # also refuses NaN
        limit = f"at least {_shown(low)}"
        if high != math.inf:
            limit = f"between {_shown(low)} and {_shown(high)}"
        raise OptionError(name, f"must be {limit}, got {value}")


def _shown(bound: float) -> str:
    """A whole number has all its digits."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """OptionError for anything but one of the choices."""
    if value not in choices:
        raise OptionError(name, f"must be one of {', '.join(choices)}, got {value!r}")


def key_fault(key: str) -> str:
    """Why no client could send this API key in a header; "" for one that can be sent."""
    if not key:
        return "must not be empty"
    if any(character < " " or character == "\x7f" for character in key):
        return "must not have control characters, such as an end of line: no header can carry them"
    if key != key.strip(" "):
        return "must not begin or end with a space: a header loses it"
    return ""


def parse_address(text: str, option: str = "dist_init_addr") -> tuple[str, int]:
    """Host and port of "host:port", an IPv6 host in brackets. OptionError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65533:
        raise OptionError(option, f"must be host:port with a port up to 65533, got {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
