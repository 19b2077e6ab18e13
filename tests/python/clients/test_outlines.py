"""outlines: forms that it asks a server of vLLM's kind for, and one of OpenAI's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest

from tests.python.clients.conftest import MODEL
from tests.python.clients.forms import Plan

outlines = pytest.importorskip("outlines", reason="outlines is not installed: extra 'clients'")

SUMS = """
    start: sum
    sum: DIGIT "+" DIGIT
    DIGIT: /[0-9]/
"""


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(api_key="none", base_url=f"{address}/v1", max_retries=0) as client:
        yield client


def test_as_of_vllm(client: Any) -> None:
    model = outlines.from_vllm(client, MODEL)
    assert model("Go on.", Literal["yes", "no"], max_tokens=50) in ("yes", "no")
    date = outlines.types.Regex(r"[0-9]{4}-[0-9]{2}")
    assert re.fullmatch(r"[0-9]{4}-[0-9]{2}", model("Go on.", date, max_tokens=50))
    assert re.fullmatch("[0-9][+][0-9]", model("Go on.", outlines.types.CFG(SUMS), max_tokens=50))
    Plan.model_validate_json(model("Go on.", Plan, max_tokens=400))
    pieces = list(model.stream("Go on.", Plan, max_tokens=400))
    assert len(pieces) > 1
    Plan.model_validate_json("".join(pieces))


def test_as_of_openai(client: Any) -> None:
    model = outlines.from_openai(client, MODEL)
    Plan.model_validate_json(model("Go on.", Plan, max_tokens=400))
    Plan.model_validate_json("".join(model.stream("Go on.", Plan, max_tokens=400)))
    assert model("Go on.", dict, max_tokens=5).startswith("{")
