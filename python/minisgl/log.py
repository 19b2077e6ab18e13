"""Log lines of all of a server's processes: one format, text or JSON, on the standard error. They
say which process speaks; lines of text that don't are the server's own.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import msgspec

from minisgl.config import LOG_LEVELS
from minisgl.environment import child_log_settings, child_log_variables

SERVER = "minisgl-serve"
TEXT_FORMAT = "%(asctime)s %(levelname)s %(message)s"
HTTP_CLIENTS = ("httpx", "httpx2")  # of Hugging Face's library: they write a line per request


class JsonFormatter(logging.Formatter):
    """One JSON object per line: "time" (UTC), "level", "logger", "process", "message", where there
    was an exception "exception", and the fields that the line was given (extra={"fields": {...}}).
    """

    _encode = staticmethod(msgspec.json.Encoder(enc_hook=str).encode)

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        line |= getattr(record, "fields", {})
        try:
            return self._encode(line).decode()
        except (UnicodeEncodeError, ValueError):  # a lone surrogate
            return self._encode({key: ascii(value) for key, value in line.items()}).decode()


def start_logging(level: str, log_format: str) -> None:
    """Sends lines of `level` ("debug" to "error") and above to the standard error, as "text" or
    "json". Child processes that are started from now on do the same.
    """
    os.environ.update(child_log_variables(level, log_format))
    _configure(level, log_format, SERVER, TEXT_FORMAT)


def start_child_logging(process: str) -> None:
    """The same in the child process of this name, as its parent does it."""
    text_format = TEXT_FORMAT.replace("%(message)s", f"{process}: %(message)s")
    _configure(*child_log_settings(), process, text_format)


def start_native_logging(set_log: Callable[[int, bool, str], None], process: str) -> None:
    """Makes the native module of this child process do the same; `set_log` is the module's."""
    level, log_format = child_log_settings()
    set_log(LOG_LEVELS.index(level), log_format == "json", process)


def _configure(level: str, log_format: str, process: str, text_format: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        JsonFormatter(process)
        if log_format == "json"
        else logging.Formatter(text_format, "%H:%M:%S")
    )
    logging.basicConfig(level=level.upper(), handlers=[handler])
    if level != "debug":
        for library in HTTP_CLIENTS:
            logging.getLogger(library).setLevel(max(logging.WARNING, logging.getLogger().level))
    if log_format == "json":
        logging.captureWarnings(True)
