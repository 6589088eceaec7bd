"""What the doors' decoders share: is this the tensor the model expects, and do these elements make it.

Every refusal names the tensor, what was given and what is expected, in the same words whichever protocol it came by. It knows
arrays and specs, no protocol. BF16 is raw 16-bit words here, as everywhere.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES, Array, TensorSpec

# The datatypes JSON can carry, and what their elements are there.
ELEMENTS: Mapping[str, Any] = {
    "BOOL": list[bool],
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), list[int]),
    **dict.fromkeys(("FP32", "FP64"), list[float]),
    "BYTES": list[str],
}
_PAST = "past_key_values."  # what a decoder has read: nothing, before the first token
_LOOKED_BACK_AT = ".encoder."  # and this is the source, which is never nothing
_MAX_RANK = 32
_MAX_DIM = 1 << 40
_MOST_OF_NOTHING = 1 << 20
_BF16 = np.dtype(np.uint16)
_LARGEST = float(np.finfo(np.float32).max)
_BINARY = {name: dtype.newbyteorder("<") for name, dtype in DATATYPES.items() if name != "BYTES"} | {"BF16": _BF16}


class Flat(Mapping[str, Array]):
    """The one input of a call as the list of numbers that it came as: an array only once somebody looks at it. Calls that
    share a batch become one array together (`merged`), for less than one of their own would cost each."""

    __slots__ = ("_array", "elements", "shape", "spec")

    def __init__(self, spec: TensorSpec, shape: tuple[int, ...], elements: Sequence[Any]) -> None:
        self.spec, self.shape, self.elements = spec, shape, elements
        self._array: Array | None = None

    def __getitem__(self, name: str) -> Array:
        """Raises `Invalid` where a number does not fit the datatype."""
        if name != self.spec.name:
            raise KeyError(name)
        if self._array is None:
            self._array = numbers(self.elements, self.spec).reshape(self.shape)
        return self._array

    def __iter__(self) -> Iterator[str]:
        return iter((self.spec.name,))

    def __len__(self) -> int:
        return 1


def merged(parts: Sequence[Flat]) -> dict[str, Array]:
    """The inputs of several calls, row after row. Their shapes agree but for dim 0. Raises `Invalid` where a number of one
    of them does not fit the datatype."""
    spec = parts[0].spec
    elements = list(chain.from_iterable([part.elements for part in parts]))
    rows = sum(part.shape[0] for part in parts)
    return {spec.name: numbers(elements, spec).reshape(rows, *parts[0].shape[1:])}


def chosen(
    specs: Mapping[str, TensorSpec], before: Mapping[str, Array], name: str, datatype: str, shape: list[int], least: int = 1
) -> TensorSpec:
    """The spec of a given input, once its name, datatype and shape agree with it; `before` are the inputs decoded already,
    `least` the size of a dim."""
    spec = specs.get(name)
    if spec is None:
        expected = ", ".join(_shown(spec) for spec in specs.values())
        raise Invalid(f"Input '{name[:100]}' is not known; expected: {expected}.")
    if name in before:
        raise Invalid(f"Input '{name}' is given twice; expected once.")
    if datatype != spec.datatype:
        raise Invalid(f"Input '{name}' has datatype '{datatype[:20]}'; expected {spec.datatype}.")
    check_shape(shape, spec, least)
    return spec


def check_complete(specs: Mapping[str, TensorSpec], inputs: Mapping[str, Any]) -> None:
    """Raises `Invalid` where an input is missing."""
    if len(inputs) != len(specs):
        missing = ", ".join(_shown(spec) for name, spec in specs.items() if name not in inputs)
        raise Invalid(f"Input missing: expected also {missing}.")


def asked(known: Sequence[str], before: Sequence[str], name: str, classification: bool) -> str:
    """The name of an output that is asked for, `before` being those asked for already."""
    if name not in known:
        there = ", ".join(f"'{output}'" for output in known)
        raise Invalid(f"Output '{name[:100]}' is not known; expected one of {there}.")
    if name in before:
        raise Invalid(f"Output '{name}' is asked for twice; expected once.")
    if classification:
        raise Invalid(f"Output '{name}': the classification extension is not offered; leave it out.")
    return name


def check_shape(shape: list[int], spec: TensorSpec, least: int = 1) -> None:
    """Raises `Invalid` unless a given shape is one the spec allows."""
    expected = spec.shape
    if expected is None:
        if len(shape) > _MAX_RANK:
            raise Invalid(f"Input '{spec.name}' has {len(shape)} dims; expected {_MAX_RANK} at most.")
        expected = (-1,) * len(shape)
    if len(shape) != len(expected):
        raise Invalid(f"Input '{spec.name}' has shape {shape[:_MAX_RANK]}; expected {list(expected)}.")
    past = spec.name.startswith(_PAST) and _LOOKED_BACK_AT not in spec.name
    for dim, (size, wanted) in enumerate(zip(shape, expected, strict=True)):
        low = 0 if dim and wanted == -1 and past else least
        if size != wanted and wanted != -1:
            raise Invalid(f"Input '{spec.name}' has shape {shape}; expected {list(expected)}.")
        if not low <= size <= _MAX_DIM:
            raise Invalid(f"Input '{spec.name}' has shape {shape}; expected sizes from {low} to {_MAX_DIM}.")
    if 0 in shape and max(shape) > _MOST_OF_NOTHING:
        raise Invalid(f"Input '{spec.name}' has shape {shape}: of nothing there are at most {_MOST_OF_NOTHING} rows.")


def count(shape: list[int]) -> str:
    """How many elements a shape has, in words."""
    return f"{math.prod(shape)}, the product of shape {shape}"


def numbers(flat: Sequence[Any], spec: TensorSpec) -> Array:
    """Raises `Invalid` where a number does not fit the datatype. JSON has no infinity, so one here was too large for FP32;
    in short lists it is found sooner without numpy."""
    dtype = DATATYPES[spec.datatype]
    try:
        if spec.datatype != "FP32" or not flat:
            return np.array(flat, dtype)
        if len(flat) <= 32:
            if max(flat) <= _LARGEST and min(flat) >= -_LARGEST:
                return np.array(flat, dtype)
        else:
            with np.errstate(over="ignore"):
                array = np.array(flat, dtype)
            if np.isfinite(array).all():
                return array
    except OverflowError:
        pass
    raise out_of_range(spec)


def out_of_range(spec: TensorSpec) -> Invalid:
    return Invalid(f"Input '{spec.name}' has a number outside the range of {spec.datatype}.")


def objects(elements: Sequence[Any], shape: list[int]) -> Array:
    """A BYTES tensor of these elements."""
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def from_bytes(spec: TensorSpec, shape: list[int], data: memoryview) -> Array:
    """The array whose bytes these are. A view of them: numbers are not copied."""
    size = math.prod(shape)
    if spec.datatype == "BYTES":
        return objects(_unpack(data, spec, shape), shape)
    dtype = _BINARY[spec.datatype]
    if len(data) != size * dtype.itemsize:
        expected = f"{size * dtype.itemsize} for shape {shape}"
        raise Invalid(f"Input '{spec.name}' has {len(data)} bytes; expected {expected} of {spec.datatype}.")
    array: Array = np.frombuffer(data, np.uint8 if dtype == np.bool_ else dtype, size)
    if dtype == np.bool_:  # any byte but 0 and 1 would be no bool to numpy
        array = array != 0
    return array.reshape(shape)


def to_bytes(array: Array, datatype: str) -> bytes:
    """An array's bytes, little-endian and row-major; elements of BYTES each behind their length."""
    if datatype != "BYTES":
        return array.astype(_BINARY[datatype], copy=False).tobytes()
    elements = [element.encode() if isinstance(element, str) else element for element in array.ravel().tolist()]
    return b"".join(part for element in elements for part in (struct.pack("<I", len(element)), element))


def _unpack(data: memoryview, spec: TensorSpec, shape: list[int]) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its length as u32 little-endian."""
    elements: list[bytes] = []
    at, size = 0, math.prod(shape)
    while at < len(data):
        start = at + 4
        length = struct.unpack_from("<I", data, at)[0] if start <= len(data) else 1 << 32
        at = start + length
        if at > len(data) or len(elements) == size:
            raise Invalid(f"Input '{spec.name}' is no sequence of {size} length-prefixed elements: see byte {start - 4}.")
        elements.append(bytes(data[start:at]))
    if len(elements) != size:
        raise Invalid(f"Input '{spec.name}' has {len(elements)} elements; expected {count(shape)}.")
    return elements


def _shown(spec: TensorSpec) -> str:
    return f"'{spec.name}' {spec.datatype} {'of any shape' if spec.shape is None else list(spec.shape)}"
