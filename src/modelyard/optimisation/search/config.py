"""What a `search` job is asked for. Read by `work.py` in every process, so nothing here loads a model library."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError, field_validator

from modelyard.errors import Invalid
from modelyard.fields import explain
from modelyard.kinds import Config
from modelyard.optimisation.config import Goal
from modelyard.optimisation.search.point import Point
from modelyard.training.sweep.space import Choice, Parameter, parameter, parse, points, size

_MOST_POINTS = 20_000


class SearchConfig(Config):
    """`trials` jobs of kind `optimise` at most, `parallel` at once (None: as many as fit), each a chain of steps out of `space`
    (as text, `channels=[0,0.5],quantize=[none,static-int8]`, or as an object; None: the usual for such a model). None begins
    that would likely end after `time_budget` seconds. `reuse`: a trial that another search
    made before, of the same versions and configuration, on such a machine with the same libraries, is taken as it came out.
    The rest is as of `optimise`."""

    max_accuracy_drop: float = Field(default=1.0, ge=0, le=100)
    goal: Goal = "latency"
    trials: int = Field(default=16, ge=1, le=300)
    time_budget: float | None = Field(default=None, gt=0)
    parallel: int | None = Field(default=None, ge=1, le=256)
    space: dict[str, Choice] | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    reuse: bool = True
    seed: int = Field(default=0, ge=0, lt=2**31)
    seconds: float = Field(default=1.5, gt=0, le=60)

    @field_validator("space", mode="before")
    @classmethod
    def _space_as_written(cls, space: Any) -> Any:
        if space is None:
            return None
        if isinstance(space, str):
            found = parse(space)
        elif isinstance(space, Mapping) and space:
            found = {str(name): parameter(str(name), values) for name, values in space.items()}
        else:
            raise Invalid("The search names nothing to try; expected channels=[0,0.5],quantize=[none,static-int8].")
        _check_names(found)
        if size(found) > _MOST_POINTS:
            many = "endlessly many" if math.isinf(size(found)) else f"{size(found):,.0f}"
            raise Invalid(f"The space has {many} points, {_MOST_POINTS:,} is the most: give shorter lists, and no ranges.")
        for point in points(found):
            try:
                Point.model_validate(point).steps()
            except ValidationError as error:
                raise Invalid(explain(error, Point, "an option of the search")) from error
        return {name: Choice(values=_values(one)) for name, one in found.items()}

    def check_ranks(self, ranks: int) -> None:
        if ranks != 1:
            raise Invalid(f"A search itself is one rank, not {ranks}, and so is each of its trials.")


def _check_names(space: Mapping[str, Any]) -> None:
    for name in space:
        if name not in Point.model_fields:
            near = difflib.get_close_matches(name, Point.model_fields, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(Point.model_fields)}."
            raise Invalid(f"'{name}' is nothing that a search can try; {hint}")


def _values(one: Parameter) -> tuple[Any, ...]:
    return one.values if isinstance(one, Choice) else tuple(range(int(one.low), int(one.high) + 1))
