"""A split as a rank holds it: the network's inputs, made once and kept where they fit in memory, otherwise at every step.

`loop` reads the train and the select split through it and asks for rows by their positions. How rows become an input is the
recipe's (`Plan.before`), which gives the same for a row at any time and in any company.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.tensors import Array
from modelyard.training.recipes import Plan

KEPT_BYTES = 512 << 20  # of a split's inputs, in each rank
_AT_ONCE = 24  # rows given to `before`: as many of the largest images as one call takes


@dataclass(frozen=True, slots=True)
class Rows:
    """`inputs` are those of all rows, or None where they are made from `columns` when they are taken. `check` is called while
    they are made, every few rows; it may raise."""

    plan: Plan
    columns: Mapping[str, Array]
    target: Array
    check: Callable[[], None]
    inputs: Array | None = None

    @classmethod
    def read(cls, dataset: Dataset, split: str, plan: Plan, check: Callable[[], None], kept: int = KEPT_BYTES) -> Rows:
        """A split that has rows; its inputs are kept where they take at most `kept` bytes."""
        read = dataset.columns(split, [*plan.features, plan.target])
        raw = cls(plan, {name: read[name] for name in plan.features}, read[plan.target], check)
        if raw.make(np.arange(1)).nbytes * len(raw.target) > kept:
            return raw
        return cls(plan, {}, raw.target, check, raw.make(np.arange(len(raw.target))))

    def take(self, positions: Array) -> tuple[Array, Array]:
        """The network's input and the target of some rows, which are the caller's to change."""
        inputs = self.make(positions) if self.inputs is None else self.inputs[positions]
        return inputs, self.target[positions]

    def make(self, positions: Array) -> Array:
        """The network's input of some rows, from what was read."""
        made = None
        for start in range(0, len(positions), _AT_ONCE):
            self.check()
            some = positions[start : start + _AT_ONCE]
            part = self.plan.before({name: column[some] for name, column in self.columns.items()})
            made = np.empty((len(positions), *part.shape[1:]), part.dtype) if made is None else made
            made[start : start + len(some)] = part
        assert made is not None, "no rows were asked for"
        return made
