"""What a `sweep` job is asked for: a configuration of `train`, and what of it is searched. Read in every process; all of it is
checked here, before anything starts."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from modelyard import fields
from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.training.config import TrainConfig
from modelyard.training.sweep.space import Choice, Parameter, Range, parameter, parse


class SweepConfig(Config):
    """`trials` jobs of kind `train` by gangs of `ranks`, at most `parallel` at once (None: as many as fit). `space`: what of
    `train` is searched, by name; of the recipe's own part the bare name will do. `metric` decides (None: select_accuracy, or
    select_loss where there is none), and `direction` says what is better of it (None: its name does). After `grace` epochs
    (None: a ninth of them), and at each `factor` times as many, a trial goes on only where it is in the best `factor`-th of
    those that came so far."""

    train: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Range | Choice]
    trials: int = Field(default=20, ge=1, le=500)
    parallel: int | None = Field(default=None, ge=1, le=256)
    ranks: int = Field(default=1, ge=1, le=1024)
    metric: str | None = None
    direction: Literal["maximise", "minimise"] | None = None
    grace: int | None = Field(default=None, ge=1)
    factor: int = Field(default=3, ge=2, le=16)
    seed: int = Field(default=0, ge=0, lt=2**31)

    @field_validator("space", mode="before")
    @classmethod
    def _space_as_written(cls, space: Any) -> Any:
        if isinstance(space, str):
            return parse(space)
        if isinstance(space, Mapping) and space:
            return {str(name): parameter(str(name), values) for name, values in space.items()}
        raise Invalid("The sweep names nothing to search; expected lr=1e-4..1e-2:log,width=[16,32,64] or such an object.")

    @model_validator(mode="after")
    def _trials_are_possible(self) -> SweepConfig:
        self.trial(self.firsts).check_ranks(self.ranks)
        for name, one in self.space.items():
            for value in _probes(one)[1:]:
                self.trial(self.firsts | {name: value}).check_ranks(self.ranks)
        return self

    def check_ranks(self, ranks: int) -> None:
        if ranks != 1:
            raise Invalid(f"A sweep itself is one rank, not {ranks}; how many each trial has is its option 'ranks'.")

    def whole(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of the trial with these parameters."""
        full = copy.deepcopy(self.train)
        for name, value in parameters.items():
            *above, last = self._path(name)
            at = full
            for part in above:
                at = at.setdefault(part, {})
                if not isinstance(at, dict):
                    raise Invalid(f"'{name}': '{part}' is no part of the configuration that has options of its own.")
            at[last] = value
        return full

    def trial(self, parameters: Mapping[str, Any]) -> TrainConfig:
        """The same, checked. Raises `Invalid`."""
        try:
            return TrainConfig.model_validate(self.whole(parameters))
        except ValidationError as error:
            raise Invalid(fields.explain(error, TrainConfig, "an option of 'train'")) from error

    @property
    def firsts(self) -> dict[str, Any]:
        """The point with every parameter's first value."""
        return {name: _probes(one)[0] for name, one in self.space.items()}

    @property
    def searched(self) -> dict[str, Parameter]:
        """The space with each range of the kind its option is: 1..10 for one that takes any number has no steps."""
        tree = self.trial(self.firsts).model_dump()
        return {name: _of_kind(one, _at(tree, self._path(name))) for name, one in self.space.items()}

    def _path(self, name: str) -> list[str]:
        """Where an option is: 'width' of the recipe image-classifier is image_classifier.width."""
        first, *rest = name.split(".")
        if first in TrainConfig.model_fields:
            return [first, *rest]
        part = str(self.train.get("recipe", TrainConfig.model_fields["recipe"].default)).replace("-", "_")
        inner = _options(part)
        if first in inner:
            return [part, first, *rest]
        known = [*TrainConfig.model_fields, *inner]
        near = difflib.get_close_matches(name, known, n=1)
        instead = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}."
        raise Invalid(f"'{name}' is not an option of 'train'; {instead}")


def _options(part: str) -> list[str]:
    """The options of a recipe's own part of the configuration."""
    field = TrainConfig.model_fields.get(part)
    default = field.default if field else None
    return list(type(default).model_fields) if isinstance(default, BaseModel) else []


def _probes(one: Parameter) -> tuple[Any, ...]:
    """Values that tell whether all will do: each of a list, the ends of a range."""
    return one.values if isinstance(one, Choice) else (one.low, one.high)


def _of_kind(one: Parameter, value: Any) -> Parameter:
    if isinstance(one, Choice) or not isinstance(value, float):
        return one
    return Range(low=float(one.low), high=float(one.high), log=one.log)


def _at(tree: Any, path: list[str]) -> Any:
    for part in path:
        tree = tree[part]
    return tree
