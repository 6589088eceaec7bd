"""KServe's V1 protocol, as TensorFlow Serving began it: `POST /v1/models/{m}:predict`, rows in, rows out, JSON alone.

A model of one input takes its rows as instances, one of several inputs takes objects by input name; answers likewise. Shapes
are read off the nesting. Everything else of `/v1` is another protocol's. Source: kserve.github.io, V1 inference protocol.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np
from msgspec import Raw, Struct

from modelyard.errors import Invalid, ModelyardError
from modelyard.serving.arrays import ELEMENTS, check_complete, check_shape, numbers, objects
from modelyard.serving.doors import Envelope, Question, error_body, segment
from modelyard.serving.oip import parse
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

# Some clients encode the colon as they do within names; no name has one, so both mean the same.
_PATH = re.compile(rb"/v1/models/([^/]+)(?::|%3[Aa])predict")
_DEEPEST = 32
_JSON = msgspec.json.Encoder()


class _Request(Struct):
    instances: Raw
    parameters: dict[str, str | int | float | bool | None] | None = None


class _Answer(Struct):
    predictions: Raw


class _Bytes(Struct):
    b64: str


# The header of an answer that names the model version which gave it.
MODEL = "modelyard-model"
_REQUEST = msgspec.json.Decoder(_Request)
_ANSWER = msgspec.json.Decoder(_Answer)
_ANYTHING = msgspec.json.Decoder(Any)
_OBJECTS = msgspec.json.Decoder(list[dict[str, Raw]])


class V1Door:
    """The gateway's half."""

    name = "v1"
    headers: frozenset[str] = frozenset()

    def envelope(self, method: bytes, path: bytes) -> Envelope | None:
        """`POST /v1/models/{m}:predict`; None for anything else."""
        match = _PATH.fullmatch(path) if method == b"POST" else None
        return None if match is None else Envelope("v1", "infer", segment(match[1]), None)

    def error(self, error: ModelyardError) -> bytes:
        return error_body(error)

    def codec(self, signature: Signature, model: str = "") -> V1Codec:
        return V1Codec(signature, model)


V1 = V1Door()


class V1Codec:
    """The replica's half, for one model version, which a header of its answers names: the protocol has no place for it."""

    def __init__(self, signature: Signature, model: str = "") -> None:
        self._origin = {MODEL: model} if model else None
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._names = tuple(self._outputs)

    def decode(self, head: Mapping[str, str], body: bytes) -> Question:
        """Raises `Invalid` saying which tensor is wrong, what was given and what is expected."""
        for name, spec in self._outputs.items():
            if spec.datatype not in ELEMENTS:
                raise Invalid(f"Output '{name}' is {spec.datatype}, which JSON cannot carry: use /v2 and ask for binary_data.")
        request = parse(_REQUEST, body)
        if len(self._inputs) == 1:
            rows = dict.fromkeys(self._inputs, bytes(request.instances))
        else:
            rows = self._columns(request.instances)
        inputs = {name: _array(spec, rows[name]) for name, spec in self._inputs.items()}
        return Question(inputs, self._names, request.parameters or {}, None)

    def encode(
        self, question: Question, deployment: str, version: str, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str] | None, bytes]:
        """The rows of the output, or objects of all outputs by name."""
        columns = [_rows(outputs[name], self._outputs[name].datatype) for name in self._names]
        if len(columns) == 1:
            return self._origin, _JSON.encode({"predictions": columns[0]})
        return self._origin, _JSON.encode(
            {"predictions": [dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True)]}
        )

    def answered(self, head: Mapping[str, str], body: bytes) -> dict[str, Array]:
        """The outputs of an answer as `encode` writes it, also where they are NaN or infinite. Raises `Invalid` where it is
        none of this model's kind."""
        rows = parse(_ANSWER, body, "an answer").predictions
        if len(self._names) == 1:
            return {name: _told(spec, rows) for name, spec in self._outputs.items()}
        named = parse(_OBJECTS, rows, "a list of objects by output name")
        if any(row.keys() != self._outputs.keys() for row in named):
            raise Invalid(f"The answer has other outputs than {', '.join(self._names)}.")
        return {name: _told(spec, _list(row[name] for row in named)) for name, spec in self._outputs.items()}

    def _columns(self, instances: Raw) -> dict[str, bytes]:
        """The rows of each input, as JSON."""
        rows = parse(_OBJECTS, instances, f"a list of objects by input name, as {len(self._inputs)} inputs need")
        for row in rows:
            for name in row:
                if name not in self._inputs:
                    expected = ", ".join(f"'{known}'" for known in self._inputs)
                    raise Invalid(f"Input '{name[:100]}' is not known; expected: {expected}.")
            check_complete(self._inputs, row)
        return {name: _list(row[name] for row in rows) for name in self._inputs}


def _list(items: Iterable[Raw]) -> bytes:
    return b"[%b]" % b",".join(map(bytes, items))


def _told(spec: TensorSpec, rows: bytes | Raw) -> Array:
    """The array of an output, given its rows as nested JSON, which says null for NaN and for what is infinite."""
    if spec.datatype not in ("FP32", "FP64"):
        return _array(spec, bytes(rows))
    try:
        array = np.array(parse(_ANYTHING, rows, "an answer"), DATATYPES[spec.datatype])
    except (TypeError, ValueError, OverflowError) as error:
        raise Invalid(f"Output '{spec.name}' is {spec.datatype}, but the answer's is not: {error}.") from error
    if spec.shape is not None and array.ndim != len(spec.shape):
        raise Invalid(f"Output '{spec.name}' has {array.ndim} dims; expected {len(spec.shape)}.")
    return array


def _array(spec: TensorSpec, rows: bytes) -> Array:
    """The array of an input, given its rows as nested JSON."""
    if spec.datatype not in ELEMENTS:
        raise Invalid(f"Input '{spec.name}' is {spec.datatype}, which JSON cannot carry: send it to /v2 as binary.")
    level, shape = _nested(spec, rows)
    check_shape(shape, spec)
    for depth, size in enumerate(shape[1:], 1):
        for item in level:
            if len(item) != size:
                raise Invalid(
                    f"Input '{spec.name}' has {len(item)} elements in dim {depth}; expected {size} as in the first row."
                )
        level = [element for item in level for element in item]
    if spec.datatype == "BYTES":
        return objects([_bytes(spec, element) for element in level], shape)
    return numbers(level, spec).reshape(shape)


def _nested(spec: TensorSpec, rows: bytes) -> tuple[list[Any], list[int]]:
    """The rows as lists in lists, and the shape as the first of each says."""
    given = parse(_ANYTHING, rows)
    if isinstance(given, list) and not given:
        raise Invalid("There are no instances; expected one at least.")
    shape: list[int] = []
    first: Any = given
    while isinstance(first, list) and len(shape) <= _DEEPEST:
        shape.append(len(first))
        first = first[0] if first else None
    kind: Any = str | _Bytes if spec.datatype == "BYTES" else ELEMENTS[spec.datatype].__args__[0]
    for _ in range(len(shape) if spec.shape is None else len(spec.shape)):
        kind = list[kind]
    try:
        level = msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        expected = "" if spec.shape is None else f" {list(spec.shape)}"
        raise Invalid(f"Input '{spec.name}' is {spec.datatype}{expected}, but an instance is not: {error}.") from error
    if not isinstance(level, list):
        raise Invalid("'instances' is no list; expected a list of rows.")
    return level, shape


def _bytes(spec: TensorSpec, element: str | _Bytes) -> bytes:
    if isinstance(element, str):
        return element.encode()
    try:
        return base64.b64decode(element.b64, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"Input '{spec.name}' has an element whose b64 is not base64: {error}.") from error


def _rows(array: Array, datatype: str) -> list[Any]:
    """An output as nested lists; bytes that are no text as {"b64": …}."""
    if datatype == "BYTES":
        flat = [_text(element) for element in array.ravel().tolist()]
        wrapped: Array = objects(flat, list(array.shape))
        return list(wrapped.tolist())
    return list(array.tolist())


def _text(element: str | bytes) -> Any:
    try:
        return element if isinstance(element, str) else element.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(element if isinstance(element, bytes) else b"").decode()}
