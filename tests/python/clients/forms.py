"""What the clients ask for."""

from __future__ import annotations

from typing import Literal

import pydantic


class Form(pydantic.BaseModel):
    """Forbids properties that it doesn't list: a random model would write many."""

    model_config = pydantic.ConfigDict(extra="forbid")


class Choice(Form):
    """Without bounds, which Anthropic's package leaves out of a form."""

    kind: Literal["left", "right"]
    sure: bool


class Step(Form):
    kind: Literal["add", "multiply"]
    amount: int = pydantic.Field(ge=-9, le=9)


class Plan(Form):
    """A form of an answer."""

    title: str = pydantic.Field(max_length=8)
    steps: list[Step] = pydantic.Field(min_length=1, max_length=3)
    note: str | None = pydantic.Field(max_length=5)


class Weather(Form):
    """A tool's arguments."""

    place: str = pydantic.Field(max_length=8)
    unit: Literal["C", "F"]
