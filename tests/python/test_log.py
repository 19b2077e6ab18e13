"""Log lines as text and as JSON."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys

import pytest

from minisgl.environment import child_log_settings, child_log_variables
from minisgl.log import JsonFormatter, start_native_logging


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    logger = logging.getLogger("minisgl.test")
    made = logger.makeRecord("minisgl.test", logging.WARNING, "f", 1, message, args, None)
    made.__dict__.update(extra)
    return made


def test_a_line_is_one_object() -> None:
    line = JsonFormatter("minisgl-serve").format(
        record("%d of\n%s", 3, '"x"', fields={"end_s": 0.5, "n": 2})
    )
    assert "\n" not in line
    value = json.loads(line)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value.pop("time"))
    assert value == {
        "level": "warning",
        "logger": "minisgl.test",
        "process": "minisgl-serve",
        "message": '3 of\n"x"',
        "end_s": 0.5,
        "n": 2,
    }


def test_an_exception_is_part_of_its_line() -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        line = JsonFormatter("minisgl-serve").format(record("it failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert json.loads(line)["exception"].endswith("RuntimeError: broken")


def test_what_json_has_no_form_for_is_written_all_the_same() -> None:
    line = JsonFormatter("minisgl-serve").format(record("a \ud800 b", fields={"what": object()}))
    assert r"\ud800" in json.loads(line)["message"]


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ({}, ("warning", "text")),
        (child_log_variables("debug", "json"), ("debug", "json")),
        ({"MINISGL_LOG_LEVEL": "loud", "MINISGL_LOG_FORMAT": ""}, ("warning", "text")),
    ],
)
def test_a_child_logs_as_its_parent_says(
    environment: dict[str, str], settings: tuple[str, str]
) -> None:
    assert child_log_settings(environment) == settings


def test_the_native_module_logs_as_the_process_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in child_log_variables("info", "json").items():
        monkeypatch.setenv(name, value)
    calls: list[tuple[int, bool, str]] = []
    start_native_logging(lambda *arguments: calls.append(arguments), "minisgl-TP1-scheduler")
    assert calls == [(1, True, "minisgl-TP1-scheduler")]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_childs_line_says_who_speaks(log_format: str) -> None:
    program = (
        "import logging\n"
        "from minisgl.log import start_child_logging\n"
        "start_child_logging('minisgl-tokenizer-3')\n"
        "logging.getLogger('x').error('%d%%', 5)\n"
    )
    line = subprocess.run(
        (sys.executable, "-c", program),
        env={**os.environ, **child_log_variables("info", log_format)},
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    if log_format == "json":
        assert json.loads(line)["process"] == "minisgl-tokenizer-3"
    else:
        assert line[8:] == " ERROR minisgl-tokenizer-3: 5%\n"
