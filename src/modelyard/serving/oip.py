"""The Open Inference Protocol v2 over REST: envelope in the gateway, tensors in the replica.

JSON, and the binary tensor data extension. JSON knows no NaN and no infinity: neither is accepted, and in an answer they
become null (ask for binary to see them). Numbers too large for the datatype are refused. FP16 and BF16 travel as binary
only. Source: github.com/kserve/open-inference-protocol.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType

from modelyard.errors import Invalid, ModelyardError
from modelyard.serving.arrays import (
    ELEMENTS,
    Flat,
    asked,
    check_complete,
    check_shape,
    chosen,
    count,
    from_bytes,
    numbers,
    objects,
    to_bytes,
)
from modelyard.serving.batching import Rows
from modelyard.serving.coding import EVENTS
from modelyard.serving.doors import Envelope, Question, error_body, segment
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

T = TypeVar("T")
HEADER_LENGTH = "inference-header-content-length"

_PATH = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")
_LISTS = {datatype: msgspec.json.Decoder(elements) for datatype, elements in ELEMENTS.items()}
_ODD_NUMBERS = msgspec.json.Decoder(list[float | None])
_JSON = msgspec.json.Encoder()
# What the elements of a list of numbers are.
_NUMBERS = {datatype: elements.__args__[0] for datatype, elements in ELEMENTS.items() if datatype != "BYTES"}
_NONE: Mapping[str, Any] = {}
_MOST_SIZES = 256


class _TensorParameters(Struct):
    binary_data_size: int | None = None
    binary_data: bool | None = None
    classification: int | None = None


class _Input(Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: _TensorParameters | None = None
    data: Raw | UnsetType = UNSET


class _Output(Struct):
    name: str
    parameters: _TensorParameters | None = None


class _Request(Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, str | int | float | bool | None] | None = None
    outputs: list[_Output] | None = None


class _PlainInput(Struct, Generic[T]):
    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[T]
    parameters: _TensorParameters | None = None


class _PlainRequest(Struct, Generic[T]):
    """A request as most are: its numbers are flat lists, read in one pass. `inputs` are one."""

    inputs: list[_PlainInput[T]]
    id: str | None = None
    parameters: dict[str, str | int | float | bool | None] | None = None
    outputs: list[_Output] | None = None


class _Answer(Struct):
    outputs: list[_Input]


_ANSWER = msgspec.json.Decoder(_Answer)
_REQUEST = msgspec.json.Decoder(_Request)


class _Wire(Struct, gc=False):
    """What the answer needs of the request: its id, and which outputs leave as binary."""

    id: str | None
    binary: tuple[bool, ...]
    events: bool = False


class OipDoor:
    """The gateway's half."""

    name = "oip"
    headers = frozenset({HEADER_LENGTH})

    def envelope(self, method: bytes, path: bytes) -> Envelope | None:
        """`POST /v2/models/{m}[/versions/{v}]/infer`; None for anything else."""
        match = _PATH.fullmatch(path) if method == b"POST" else None
        if match is None:
            return None
        deployment, version = match.groups()
        return Envelope("oip", "infer", segment(deployment), None if version is None else segment(version))

    def error(self, error: ModelyardError) -> bytes:
        return error_body(error)

    def codec(self, signature: Signature, model: str = "") -> OipCodec:
        return OipCodec(signature, model)


OIP = OipDoor()


class OipCodec:
    """The replica's half, for one model version. Its answers name it ('digits-cnn@3') among their parameters: a deployment's
    name and a number would not say which model that was, once the deployment has moved to another."""

    def __init__(self, signature: Signature, model: str = "") -> None:
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}
        self._names = tuple(self._outputs)
        self._all_json = (False,) * len(self._names)
        self._json_carries_all = all(spec.datatype in ELEMENTS for spec in signature.outputs)
        # The unchanging start of each output and of the whole answer, as JSON.
        self._starts = {name: b'{"name":%b,"datatype":"%b","shape":' % (_JSON.encode(name), spec.datatype.encode())
                        for name, spec in self._outputs.items()}  # fmt: skip
        self._titles: dict[tuple[str, str], bytes] = {}
        self._answers: dict[tuple[str, str, tuple[int, ...]], tuple[bytes, bytes]] = {}  # what is around id and elements
        self._plain: msgspec.json.Decoder[_PlainRequest[Any]] | None = None
        self._sizes: dict[tuple[int, ...], int] = {}  # the elements of shapes that were checked
        (first, *others) = signature.inputs
        kind = _NUMBERS.get(first.datatype)
        if not others and kind is not None and self._json_carries_all:
            self._plain = msgspec.json.Decoder(_PlainRequest[kind])  # type: ignore[valid-type]
        self._origin = b'"parameters":{"model":%b},' % _JSON.encode(model) if model else b""

    def decode(self, head: Mapping[str, str], body: bytes) -> Question:
        """Raises `Invalid` saying which tensor is wrong, what was given and what is expected."""
        stated = head.get(HEADER_LENGTH)
        if stated is None and self._plain is not None:
            question = self._decode_plain(self._plain, body, "accept" in head)
            if question is not None:
                return question
        at = len(body) if stated is None else _header_length(stated, body)
        request = parse(_REQUEST, body if stated is None else body[:at])
        inputs: dict[str, Array] = {}
        for given in request.inputs:
            spec = chosen(self._inputs, inputs, given.name, given.datatype, given.shape)
            size = given.parameters.binary_data_size if given.parameters is not None else None
            if size is None:
                inputs[given.name] = _from_json(given, spec)
            else:
                inputs[given.name] = _from_binary(given, spec, body, at, size)
                at += size
        check_complete(self._inputs, inputs)
        if at != len(body):
            raise Invalid(f"{len(body) - at} bytes follow the last binary tensor; expected none.")
        return self._question(request, inputs, head.get("accept") == EVENTS)

    def _decode_plain(self, decoder: msgspec.json.Decoder[_PlainRequest[Any]], body: bytes, accepts: bool) -> Question | None:
        """A request for all outputs as JSON, of one input as a flat list; None for any other, and for what is wrong: `decode`
        then says why."""
        try:
            request = decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if len(request.inputs) != 1 or request.parameters is not None or request.outputs is not None or accepts:
            return None
        (given,) = request.inputs
        spec = self._inputs.get(given.name)
        if spec is None or given.datatype != spec.datatype or given.parameters is not None:
            return None
        if len(given.data) != self._size(spec, given.shape):
            return None
        return Question(Flat(spec, given.shape, given.data), self._names, _NONE, _Wire(request.id, self._all_json))

    def _size(self, spec: TensorSpec, shape: tuple[int, ...]) -> int:
        """The elements of a shape that is allowed. Raises `Invalid` where it is none."""
        size = self._sizes.get(shape)
        if size is None:
            check_shape(list(shape), spec)
            size = math.prod(shape)
            if len(self._sizes) < _MOST_SIZES:
                self._sizes[shape] = size
        return size

    def answered(self, head: Mapping[str, str], body: bytes) -> dict[str, Array]:
        """The outputs of an answer as `encode` writes it, also where they are NaN, infinite or empty. Raises `Invalid` where
        it is none of this model's kind."""
        stated = head.get(HEADER_LENGTH)
        at = len(body) if stated is None else _header_length(stated, body)
        outputs: dict[str, Array] = {}
        for said in parse(_ANSWER, body[:at], "an answer").outputs:
            spec = chosen(self._outputs, outputs, said.name, said.datatype, said.shape, least=0)
            size = said.parameters.binary_data_size if said.parameters is not None else None
            outputs[said.name] = _told(said, spec) if size is None else _from_binary(said, spec, body, at, size)
            at += size or 0
        return outputs

    def encode(
        self, question: Question, deployment: str, version: str, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str] | None, bytes]:
        """The answer in the order asked for: JSON, then the binary tensors."""
        wire: _Wire = question.wire
        if wire.binary is self._all_json and not wire.events and len(outputs) == 1 and type(outputs) is Rows:
            return None, self._encode_plain(wire, deployment, version, outputs)
        described: list[bytes] = []
        blobs: list[bytes] = []
        for name, binary in zip(question.outputs, wire.binary, strict=True):
            datatype = self._outputs[name].datatype
            shape = _shape(outputs.shape(name) if type(outputs) is Rows else outputs[name].shape)
            if binary:
                blobs.append(to_bytes(outputs[name], datatype))
                described.append(b'%b%b,"parameters":{"binary_data_size":%d}}' % (self._starts[name], shape, len(blobs[-1])))
            else:
                described.append(b'%b%b,"data":%b}' % (self._starts[name], shape, _to_json(name, outputs, datatype)))
        echo = b"" if wire.id is None else b'"id":%b,' % _JSON.encode(wire.id)
        text = b'%b%b"outputs":[%b]}' % (self._title(deployment, version), echo, b",".join(described))
        if wire.events:
            return {"content-type": EVENTS, "cache-control": "no-cache"}, b"data: %b\n\n" % text
        if not blobs:
            return None, text
        headers = {"content-type": "application/octet-stream", HEADER_LENGTH: str(len(text))}
        return headers, b"".join((text, *blobs))

    def _encode_plain(self, wire: _Wire, deployment: str, version: str, outputs: Rows) -> bytes:
        """The answer of one output as JSON: all before its elements is the same for calls of as many rows."""
        name = self._names[0]
        shape = outputs.shape(name)
        around = self._answers.get((deployment, version, shape))
        if around is None:
            start = b'"outputs":[%b%b,"data":' % (self._starts[name], _JSON.encode(shape))
            around = self._title(deployment, version), start
            if len(self._answers) < _MOST_SIZES:
                self._answers[deployment, version, shape] = around
        data = _to_json(name, outputs, self._outputs[name].datatype)
        echo = b"" if wire.id is None else b'"id":%b,' % _JSON.encode(wire.id)
        return b"%b%b%b%b}]}" % (around[0], echo, around[1], data)

    def _question(self, request: _Request, inputs: dict[str, Array], events: bool) -> Question:
        parameters = request.parameters or {}
        every = parameters.get("binary_data_output") is True
        if request.outputs is None and not every and self._json_carries_all:
            return Question(inputs, self._names, parameters, _Wire(request.id, self._all_json, events))
        wishes = [_Output(name) for name in self._names] if request.outputs is None else request.outputs
        names: list[str] = []
        binary: list[bool] = []
        for output in wishes:
            parameters_of = output.parameters or _TensorParameters()
            names.append(asked(self._names, names, output.name, bool(parameters_of.classification)))
            wanted = parameters_of.binary_data
            binary.append(every if wanted is None else wanted)
            if not binary[-1] and self._outputs[output.name].datatype not in ELEMENTS:
                datatype = self._outputs[output.name].datatype
                raise Invalid(f"Output '{output.name}' is {datatype}, which JSON cannot carry: ask for it with binary_data.")
        if events and any(binary):
            raise Invalid("A stream of events carries JSON alone: ask for no binary outputs, or leave out its Accept.")
        return Question(inputs, tuple(names), parameters, _Wire(request.id, tuple(binary), events))

    def _title(self, deployment: str, version: str) -> bytes:
        title = self._titles.get((deployment, version))
        if title is None:
            names = _JSON.encode(deployment), _JSON.encode(version), self._origin
            title = self._titles[deployment, version] = b'{"model_name":%b,"model_version":%b,%b' % names
        return title


def _header_length(stated: str, body: bytes) -> int:
    length = int(stated) if stated.isascii() and stated.isdigit() and len(stated) <= 12 else -1
    if not 0 < length <= len(body):
        raise Invalid(
            f"The header Inference-Header-Content-Length is '{stated[:30]}'; expected the JSON's size, {len(body)} at most."
        )
    return length


def parse(decoder: msgspec.json.Decoder[T], text: bytes | Raw, what: str = "an inference request") -> T:
    """A request's JSON, or a part of it that is `what`. Raises `Invalid` saying what is wrong with it."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Invalid(f"The request is not {what}: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"The request is not valid JSON: {error}.") from error
    except RecursionError as error:
        raise Invalid("The request's JSON is nested too deeply.") from error


def _from_json(given: _Input, spec: TensorSpec) -> Array:
    """The array of a JSON input: flat or nested, row-major."""
    datatype, data = spec.datatype, given.data
    decoder = _LISTS.get(datatype)
    if decoder is None:
        raise Invalid(f"Input '{spec.name}' is {datatype}, which JSON cannot carry: send it as binary (binary_data_size).")
    if data is UNSET:
        raise Invalid(f"Input '{spec.name}' has no data; expected 'data', or binary_data_size in its parameters.")
    try:
        flat = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError):
        flat = _flatten(given, spec, data)
    if len(flat) != math.prod(given.shape):
        raise Invalid(f"Input '{spec.name}' has {len(flat)} elements; expected {count(given.shape)}.")
    if datatype == "BYTES":
        return objects([text.encode() for text in flat], given.shape)
    return numbers(flat, spec).reshape(given.shape)


def _told(said: _Input, spec: TensorSpec) -> Array:
    """The array of an output in JSON, which says null for NaN and for what is infinite."""
    if spec.datatype not in ("FP32", "FP64") or said.data is UNSET:
        return _from_json(said, spec)
    flat = parse(_ODD_NUMBERS, said.data, "an answer")
    if len(flat) != math.prod(said.shape):
        raise Invalid(f"Output '{spec.name}' has {len(flat)} elements; expected {count(said.shape)}.")
    with np.errstate(over="ignore"):
        return np.array(flat, DATATYPES[spec.datatype]).reshape(said.shape)


def _flatten(given: _Input, spec: TensorSpec, data: Raw) -> list[Any]:
    """The elements of nested data, in order. Raises `Invalid` where they disagree with the shape or the datatype."""
    try:
        value = msgspec.json.decode(data)
    except RecursionError as error:
        raise Invalid(f"Input '{spec.name}' is nested too deeply; expected {len(given.shape)} dims.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"Input '{spec.name}' is not valid JSON: {error}.") from error
    if not isinstance(value, list):
        raise Invalid(f"Input '{spec.name}' has data that is no list.")
    if any(isinstance(item, list) for item in value):
        level = [value]
        for depth, size in enumerate(given.shape):
            for item in level:
                if not isinstance(item, list) or len(item) != size:
                    found = f"{len(item)} elements" if isinstance(item, list) else "no list"
                    raise Invalid(f"Input '{spec.name}' has {found} in dim {depth}; expected {size} by shape {given.shape}.")
            level = [element for item in level for element in item]
        value = level
    try:
        return list(msgspec.convert(value, ELEMENTS[spec.datatype]))
    except msgspec.ValidationError as error:
        raise Invalid(f"Input '{spec.name}' is {spec.datatype}, but an element is not: {error}.") from error


def _from_binary(given: _Input, spec: TensorSpec, body: bytes, at: int, size: int) -> Array:
    """The array of an input whose bytes lie in the body."""
    if given.data is not UNSET:
        raise Invalid(f"Input '{spec.name}' has both data and binary_data_size; expected one.")
    if not 0 <= size <= len(body) - at:
        raise Invalid(f"Input '{spec.name}' states {size} binary bytes; {len(body) - at} are left in the request.")
    return from_bytes(spec, given.shape, memoryview(body)[at : at + size])


@lru_cache(4096)
def _shape(shape: tuple[int, ...]) -> bytes:
    return _JSON.encode(shape)


def _to_json(name: str, outputs: Mapping[str, Array], datatype: str) -> bytes:
    flat = outputs.elements(name) if type(outputs) is Rows else outputs[name].ravel().tolist()
    if datatype != "BYTES":
        return _JSON.encode(flat)
    try:
        return _JSON.encode([element if isinstance(element, str) else element.decode() for element in flat])
    except UnicodeDecodeError as error:
        raise Invalid(f"Output '{name}' is not text, so JSON cannot carry it: ask for it with binary_data.") from error
