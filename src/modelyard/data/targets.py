"""What a column to predict becomes: classes with names, a number, or a text. One rule for every source that has columns.

Called by `tables` and `records` with what their first pass learned of the column.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import get_args

from modelyard.data.config import Task, Writes
from modelyard.data.datasets import Feature, FeatureType
from modelyard.errors import Invalid

MOST_CLASSES = 1000
FEW_NUMBERS = 20  # an integer target with at most this many values is a class


def target_feature(
    where: str, kind: FeatureType, values: Collection[str], task: Task | None, usual: Task
) -> tuple[Feature, Task]:
    """The feature and the task, of a target of type `kind` with these values (as texts; at most one more than `MOST_CLASSES` is
    given). `usual` is what telling classes apart is called here. Raises `Invalid` where the values are no target."""
    if kind not in ("text", "int", "float"):
        raise Invalid(f"{where} is of type {kind}; a target is text or numbers. Nothing was imported.")
    classes = kind == "text" or (kind == "int" and len(values) <= FEW_NUMBERS)
    chosen = task or (usual if classes else "tabular-regression")
    if chosen in get_args(Writes):
        if kind != "text":
            raise Invalid(f"{where} is of type {kind}; {chosen} needs a target of texts. Nothing was imported.")
        return Feature(type="text"), chosen
    if chosen == "tabular-regression":
        if kind == "text":
            raise Invalid(f"{where} is text; tabular-regression needs a target of numbers. Nothing was imported.")
        return Feature(type=kind), chosen
    if len(values) < 2 or len(values) > MOST_CLASSES:
        many = f"more than {MOST_CLASSES}" if len(values) > MOST_CLASSES else f"{len(values)}"
        raise Invalid(f"{where} has {many} different values; a class needs 2 to {MOST_CLASSES}. Nothing was imported.")
    names = sorted(values, key=lambda value: (number(value) or 0.0, value) if kind != "text" else (0.0, value))
    return Feature(type="label", names=tuple(names)), chosen


def number(text: str) -> float | None:
    """A finite number, or None. Stricter than `float`: no underscores, no infinity."""
    try:
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
