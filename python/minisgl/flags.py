"""The command line of minisgl-serve and its MINISGL_* variables: one flag and one variable per
option of ServerArgs.
"""

from __future__ import annotations

import argparse
import difflib
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, fields
from typing import Any

from minisgl.config import OptionError, ServerArgs
from minisgl.distributed_info import DistributedInfo
from minisgl.version import __version__

ENV_PREFIX = "MINISGL_"
GROUPS = ("model", "HTTP", "engine", "tensor parallelism", "replicas", "processes")

_SUFFIXES = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}
_COUNT = re.compile(r"(-?[0-9]{1,18})([KMG]?)", re.IGNORECASE | re.ASCII)
# How alike two names are, 0 to 1, of which one may be a slip of the pen for the other.
_ALIKE = 0.8


def parse_count(text: str) -> int:
    """A whole number with an optional suffix K, M or G (powers of 1024): "64K" is 65536. One below
    0 is read, too: the bounds of what it is for refuse it.
    """
    match = _COUNT.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(
            f"expected a whole number such as 4096 or 64K, got {text!r}"
        )
    return int(match[1]) * _SUFFIXES[match[2].upper()]


def parse_ranks(text: str) -> DistributedInfo:
    """So many ranks, as rank 0 sees them."""
    count = parse_count(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1 rank, got {text!r}")
    return DistributedInfo(0, count)


def parse_optional(text: str) -> str | None:
    """A text, or None where it is empty: the option is as if it weren't given."""
    return text or None


def parse_switch(text: str) -> bool:
    """A switch in the environment: 1 or true, 0 or false."""
    answer = {"1": True, "true": True, "0": False, "false": False}.get(text.strip().lower())
    if answer is None:
        raise argparse.ArgumentTypeError(f"expected 1 or 0, got {text!r}")
    return answer


def parse_number(text: str) -> float:
    """A finite number, such as a time in seconds or a share."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


@dataclass(frozen=True)
class _Flag:
    """One flag of the command line, made of an option's field. Its environment variable is MINISGL_
    and the flag's name in capitals.
    """

    field: Field[Any]

    @property
    def name(self) -> str:
        return self.field.metadata["flag"] or self.field.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENV_PREFIX + self.name.replace("-", "_").upper()

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value on the command line; it is 1 or 0 in the environment."""
        return isinstance(self.field.default, bool)

    @property
    def is_list(self) -> bool:
        """Whether it may have several values: behind one flag, or behind several of them."""
        return isinstance(self.field.default, tuple)

    @property
    def is_secret(self) -> bool:
        """Whether its value isn't shown."""
        return not self.field.repr

    @property
    def is_text(self) -> bool:
        """Whether it is a text of any kind, and the empty text a value."""
        is_string = isinstance(self.field.default, (str, tuple, type(None)))
        return is_string and "choices" not in self.field.metadata

    @property
    def parse(self) -> Callable[[str], Any]:
        if self.is_list:
            # A secret may have commas in it: there is one in a variable, and one per flag.
            return lambda text: self.join([[text] if self.is_secret else text.split(",")])
        if self.field.metadata["empty_is_none"]:
            return parse_optional
        parsers: dict[type, Callable[[str], Any]] = {
            bool: parse_switch,
            int: parse_count,
            float: parse_number,
            DistributedInfo: parse_ranks,
        }
        return parsers.get(type(self.field.default), str)

    def join(self, uses: list[list[str]]) -> tuple[str, ...]:
        """The values of an option that may have several, from all uses of its flag; each once."""
        texts = dict.fromkeys(itertools.chain(*uses))
        if self.field.metadata["empty_is_none"]:
            texts.pop("", None)
        return tuple(texts)

    @property
    def metavar(self) -> str:
        names = {int: "N", float: "SECONDS", DistributedInfo: "N"}
        return self.field.metadata["metavar"] or names.get(type(self.field.default), "TEXT")

    def is_set(self, environment: Mapping[str, str]) -> bool:
        """Whether the environment has a value for it. An empty one is a value of a text; there is
        no empty number, switch or choice, and an empty variable leaves them unset.
        """
        if self.is_text:
            return self.variable in environment
        return bool(environment.get(self.variable))

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Adds it to the parser. A default is shown where it says something."""
        name, help, default = f"--{self.name}", self.field.metadata["help"], self.field.default
        if self.is_switch:
            group.add_argument(name, dest=self.field.name, action="store_true", help=help)
            return
        alias = self.field.metadata["alias"]
        names = [name, f"--{alias}"] if alias else [name]
        if self.is_list:
            group.add_argument(
                *names,
                dest=self.field.name,
                action="append",
                nargs=1 if self.is_secret else "+",
                metavar=self.metavar,
                help=help,
            )
            return
        if isinstance(default, DistributedInfo):
            default = default.size
        shown = "" if default in (None, "") else f" (default {default})"
        group.add_argument(
            *names, dest=self.field.name, type=self.parse, metavar=self.metavar, help=help + shown
        )


def _flags() -> Iterator[_Flag]:
    return (_Flag(field) for field in fields(ServerArgs) if field.metadata)


def _meant(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is most like a name which is none of them."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=_ALIKE)), None)


def mistyped_variables(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that nothing reads although they are nearly called like an option's, and that
    option's variable.
    """
    names = {flag.variable.removeprefix(ENV_PREFIX) for flag in _flags()}
    for variable in environment:
        name = variable.removeprefix(ENV_PREFIX)
        if name not in (variable, *names) and (meant := _meant(name, names)):
            yield variable, ENV_PREFIX + meant


def secret_variables() -> frozenset[str]:
    """Names of the variables whose values only the server may know."""
    return frozenset(flag.variable for flag in _flags() if flag.is_secret)


def build_parser() -> argparse.ArgumentParser:
    """The parser behind minisgl-serve. Flags that aren't given are absent from its result."""
    parser = argparse.ArgumentParser(
        prog="minisgl-serve",
        usage="%(prog)s [MODEL] [--FLAG [VALUE] ...]; %(prog)s --help lists the flags",
        description="Serve a language model over an OpenAI-compatible HTTP API.",
        epilog=f"Each flag can be set in the environment: --kv-dtype is {ENV_PREFIX}KV_DTYPE; one "
        "without a value is 1 or 0 there. An empty variable is the empty text where the option "
        f"is a text ({ENV_PREFIX}METRICS_ALIAS_PREFIX= switches the second prefix off), and leaves "
        "a number, a switch or a choice unset. Several values have commas between them there. "
        "Counts accept K, M and G (powers of 1024).",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "positional_model",
        nargs="?",
        type=parse_optional,
        metavar="MODEL",
        help="the same as --model",
    )
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    for flag in _flags():
        flag.add_to(groups[flag.field.metadata["group"]])
    parser.add_argument("--shell", action="store_true", help="talk to the model in this terminal")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    return parser


def _unknown_flags(arguments: Sequence[str]) -> str:
    """What is wrong with arguments that the parser has no place for."""
    names = [f"--{flag.name}" for flag in _flags()]
    flags = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    hints = [f"{flag} may be {meant}" for flag in flags if (meant := _meant(flag, names))]
    advice = f" ({', '.join(hints)})" if hints else ""
    return f"unrecognized arguments: {' '.join(arguments)}{advice}"


def _service_hint(flag: _Flag, environment: Mapping[str, str]) -> str:
    """Who has set a port's variable to an address."""
    if flag.name != "port" or not environment[flag.variable].startswith("tcp://"):
        return ""
    return (
        "; Kubernetes sets it where a Service is called minisgl: give --port, or leave such "
        "variables out with enableServiceLinks: false in the pod's spec"
    )


def parse_args(
    argv: Sequence[str] | None = None, environment: Mapping[str, str] | None = None
) -> ServerArgs:
    """Reads flags, then the environment for what no flag set, then the defaults.

    Ends the process like every argparse program does: status 2 and one sentence for a bad value, 0
    after --help and --version. The sentence names the flag or the variable that has the value.
    """
    environment = os.environ if environment is None else environment
    parser = build_parser()
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.error(_unknown_flags(unknown))
    given = vars(known)
    if given.pop("version", False):
        print(f"minisgl {__version__}")
        parser.exit(0)
    positional = given.pop("positional_model", None)
    if positional is not None:
        if "model" in given:
            parser.error(f"the model is given twice: {positional!r} and --model {given['model']!r}")
        given["model"] = positional
    sources = {flag.field.name: f"--{flag.name}" for flag in _flags()}
    swallowed = ""  # a flag with several values: the last one may be meant as the model
    for flag in _flags():
        name = flag.field.name
        if flag.is_list and name in given:
            swallowed = f"--{flag.name}" if max(map(len, given[name])) > 1 else swallowed
            given[name] = flag.join(given[name])
        if name not in given and flag.is_set(environment):
            sources[name] = f"environment variable {flag.variable}:"
            try:
                given[name] = flag.parse(environment[flag.variable])
            except argparse.ArgumentTypeError as error:
                parser.error(f"{sources[name]} {error}{_service_hint(flag, environment)}")
    if swallowed and "model" not in given:
        parser.error(
            f"{swallowed} has several values, and no model is given: if the last one is the model, "
            f"put it first; if not, repeat {swallowed} before each value"
        )
    try:
        return ServerArgs(**given)
    except OptionError as error:
        parser.error(f"{sources[error.option]} {error.sentence}")
