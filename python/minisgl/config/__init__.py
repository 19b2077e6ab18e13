"""What may be set: ServerArgs, of parts by subject, each option once. Others import from here."""

from minisgl.config.engine import MAX_WAITING, EngineSettings
from minisgl.config.model import GENERATION_CONFIGS
from minisgl.config.option import DAY, OptionError, key_fault, parse_address
from minisgl.config.placement import COMM_KINDS, CommKind, Routing
from minisgl.config.server import LOG_FORMATS, LOG_LEVELS, STEP_TIMEOUT, ServerArgs

__all__ = [
    "COMM_KINDS",
    "DAY",
    "GENERATION_CONFIGS",
    "LOG_FORMATS",
    "LOG_LEVELS",
    "MAX_WAITING",
    "STEP_TIMEOUT",
    "CommKind",
    "EngineSettings",
    "OptionError",
    "Routing",
    "ServerArgs",
    "key_fault",
    "parse_address",
]
