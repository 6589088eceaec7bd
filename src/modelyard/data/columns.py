"""Named columns: one public tensor a column, normalised by statistics of the training data, to one matrix for the engine.

Called through `transforms.build({"name": "columns", …})` by tabular recipes and by the replicas of their models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from modelyard.data.transforms import check_engine, classification_outputs, classify, needed
from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.tensors import Array, Signature, TensorSpec


class Column(Config):
    """One column. Numbers become (x - mean) / std, NaN counts as the mean and, with `indicator`, is 1 in a column of its own;
    BYTES become one 0/1 column per category, and any other text, if `others` may come, zeros in all of them."""

    name: str
    datatype: Literal["FP32", "FP64", "INT64", "BYTES"] = "FP32"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    indicator: bool = False
    categories: tuple[str, ...] = ()
    others: bool = False

    @model_validator(mode="after")
    def _finite(self) -> Column:
        if not (math.isfinite(self.mean) and math.isfinite(self.std)):
            raise ValueError("mean and std must be finite")
        if (self.datatype == "BYTES") != bool(self.categories):
            raise ValueError("a BYTES column has categories, no other column has")
        if self.indicator if self.categories else self.others:
            raise ValueError("an indicator is for numbers, others are for categories")
        return self

    @property
    def width(self) -> int:
        return len(self.categories) or 1 + self.indicator


class ColumnsOptions(Config):
    """`labels`: the model classifies, otherwise it predicts numbers: what the engine answers, times `std`, and `mean`.
    `input`/`output` are the engine's tensor names."""

    columns: tuple[Column, ...] = Field(min_length=1)
    labels: tuple[str, ...] | None = None
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    input: str = "x"
    output: str = "output"


class ColumnsTransform:
    """One tensor [n] a column → one matrix FP32 [n, width]; logits → `label` and `scores`, numbers → `prediction` FP32."""

    options: type[Config] = ColumnsOptions

    def __init__(self, options: ColumnsOptions, folder: Path | None = None) -> None:
        self.config: dict[str, Any] = {"name": "columns", **options.model_dump(mode="json", exclude_defaults=True)}
        self._options = options

    @property
    def width(self) -> int:
        """Columns of the matrix."""
        return sum(column.width for column in self._options.columns)

    def signature(self, engine: Signature) -> Signature:
        o = self._options
        check_engine("columns", engine, TensorSpec(o.input, "FP32", (-1, self.width)), o.output, o.labels)
        inputs = tuple(TensorSpec(column.name, column.datatype, (-1,)) for column in o.columns)
        if o.labels:
            return Signature(inputs, classification_outputs(o.labels))
        shape = next(spec.shape for spec in engine.outputs if spec.name == o.output)
        public = (-1,) if shape is not None and shape[1:] == (1,) else shape
        return Signature(inputs, (TensorSpec("prediction", "FP32", public),))

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        columns = [(column, needed(inputs, column.name).reshape(-1)) for column in self._options.columns]
        sizes = {column.name: len(values) for column, values in columns}
        if len(set(sizes.values())) > 1:
            raise Invalid(f"The columns have different numbers of rows: {sizes}.")
        parts = [_one_hot(column, values) if column.categories else _scale(column, values) for column, values in columns]
        return {self._options.input: np.concatenate(parts, axis=1)}

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        values = needed(outputs, self._options.output)
        if self._options.labels:
            return classify(values, self._options.labels)
        flat = values.reshape(-1) if values.ndim == 2 and values.shape[1] == 1 else values
        return {"prediction": (flat * np.float64(self._options.std) + self._options.mean).astype(np.float32)}


def _scale(column: Column, values: Array) -> Array:
    """Normalised in float64, so that large integers lose nothing before their mean is taken off; FP32 [n, 1], or [n, 2] with
    the indicator."""
    numbers = values.astype(np.float64)
    if np.isinf(numbers).any():
        raise Invalid(f"Row {int(np.isinf(numbers).argmax())} of '{column.name}' is infinite; a finite number was expected.")
    missing = np.isnan(numbers)
    scaled = (np.where(missing, column.mean, numbers) - column.mean) / column.std
    return np.stack([scaled, missing] if column.indicator else [scaled], axis=1).astype(np.float32)


def _one_hot(column: Column, values: Array) -> Array:
    """FP32 [n, categories]. Raises `Invalid` for a category the model was not trained with, unless it takes others."""
    position = {name.encode(): index for index, name in enumerate(column.categories)}
    matrix = np.zeros((len(values), len(position)), np.float32)
    for row, value in enumerate(values):
        raw = value.encode() if isinstance(value, str) else bytes(value)
        if raw in position:
            matrix[row, position[raw]] = 1
        elif not column.others:
            raise Invalid(
                f"Row {row} of '{column.name}' is {raw[:60]!r}; the model knows {', '.join(map(repr, column.categories[:20]))}."
            )
    return matrix
