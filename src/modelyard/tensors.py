"""Tensors, calls and replies: the values that cross every boundary between rooms.

Doors decode wire bytes into a `Call` and encode a `Reply`; engines, transforms and pipelines know only these.
Nothing here knows a protocol or an engine. Datatypes are the Open Inference Protocol's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.errors import Invalid

Array = NDArray[Any]

# BF16 has no numpy type: it travels as raw 16-bit words and doors accept it only as binary.
DATATYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(array: Array) -> str:
    """The protocol's name for an array's type; 'BYTES' for an object array of `bytes`. Raises `Invalid` for a type that the
    protocol does not have (complex numbers, dates, numpy's own strings)."""
    name = _NAMES.get(array.dtype.newbyteorder("="))
    if name is None:
        raise Invalid(
            f"Arrays of type '{array.dtype}' cannot be sent; those that can are {', '.join(map(str, DATATYPES.values()))}."
        )
    return name


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor by name. `shape` counts the batch as dim 0; -1 is any size; None is any rank."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": [-1] if self.shape is None else list(self.shape)}


def shown(spec: TensorSpec) -> str:
    """A spec for people: 'image:FP32[-1, 3, 224, 224]', without a shape where that is any."""
    return f"{spec.name}:{spec.datatype}{'' if spec.shape is None else list(spec.shape)}"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and gives: the tensors of one call, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array; for 'BYTES' an object array whose elements are `bytes`."""

    name: str
    datatype: str
    array: Array


@dataclass(frozen=True, slots=True)
class Call:
    """One inference request, free of any protocol. `deadline` is a time.time(); `grant` the units it may use, None for any."""

    id: str
    project: str
    deployment: str
    version: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    grant: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One part of an answer. `units` is what this part used, in the task's unit: rows, tokens, seconds."""

    outputs: tuple[Tensor, ...]
    units: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
