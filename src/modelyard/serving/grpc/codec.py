"""The replica's half of gRPC: ModelInferRequest in, ModelInferResponse out.

Tensors come as raw bytes, the way every client sends them, or as typed contents; they leave as raw bytes. What is wrong is said
in the same words as over HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from modelyard.errors import Invalid
from modelyard.serving.arrays import asked, check_complete, chosen, count, from_bytes, objects, out_of_range, to_bytes
from modelyard.serving.doors import Question
from modelyard.serving.grpc.messages import ModelInferRequest, ModelInferResponse
from modelyard.tensors import DATATYPES, Array, Signature, TensorSpec

# Where typed contents carry which datatype. Those of 16 bits that are no integers travel raw alone.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcCodec:
    """For one model version, which its answers name among their parameters."""

    def __init__(self, signature: Signature, model: str = "") -> None:
        self._model = model
        self._inputs = {spec.name: spec for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}

    def decode(self, head: Mapping[str, str], body: bytes) -> Question:
        """Raises `Invalid` saying which tensor is wrong, what was given and what is expected."""
        request = ModelInferRequest()
        try:
            request.ParseFromString(body)
        except DecodeError as error:
            raise Invalid("The request is not a ModelInferRequest.") from error
        raw = request.raw_input_contents
        if raw and len(raw) != len(request.inputs):
            raise Invalid(f"The request has {len(raw)} raw_input_contents for {len(request.inputs)} inputs; expected as many.")
        inputs: dict[str, Array] = {}
        for index, given in enumerate(request.inputs):
            shape = list(given.shape)
            spec = chosen(self._inputs, inputs, given.name, given.datatype, shape)
            if not raw:
                inputs[spec.name] = _typed(given.contents, spec, shape)
            elif given.contents.ListFields():
                raise Invalid(f"Input '{spec.name}' has both contents and raw_input_contents; expected one.")
            else:
                inputs[spec.name] = from_bytes(spec, shape, memoryview(raw[index]))
        check_complete(self._inputs, inputs)
        return Question(inputs, self._asked(request), _parameters(request), request.id)

    def encode(
        self, question: Question, deployment: str, version: str, outputs: Mapping[str, Array]
    ) -> tuple[dict[str, str] | None, bytes]:
        """The answer, its tensors raw and in the order asked for."""
        response = ModelInferResponse(model_name=deployment, model_version=version, id=question.wire)
        if self._model:
            response.parameters.add(key="model").value.string_param = self._model
        for name in question.outputs:
            array, datatype = outputs[name], self._outputs[name].datatype
            response.outputs.add(name=name, datatype=datatype, shape=array.shape)
            response.raw_output_contents.append(to_bytes(array, datatype))
        return {"content-type": "application/grpc"}, response.SerializeToString()

    def answered(self, head: Mapping[str, str], body: bytes) -> dict[str, Array]:
        """The outputs of an answer as `encode` writes it. Raises `Invalid` where it is none of this model's kind."""
        try:
            response = ModelInferResponse.FromString(body)
        except DecodeError as error:
            raise Invalid("The answer is not a ModelInferResponse.") from error
        raw = response.raw_output_contents
        if len(raw) != len(response.outputs):
            raise Invalid(f"The answer has {len(raw)} raw_output_contents for {len(response.outputs)} outputs.")
        outputs: dict[str, Array] = {}
        for said, content in zip(response.outputs, raw, strict=True):
            shape = list(said.shape)
            spec = chosen(self._outputs, outputs, said.name, said.datatype, shape, least=0)
            outputs[spec.name] = from_bytes(spec, shape, memoryview(content))
        return outputs

    def _asked(self, request: Any) -> tuple[str, ...]:
        names: list[str] = []
        for output in request.outputs:
            wants_classes = any(parameter.key == "classification" for parameter in output.parameters)
            names.append(asked(tuple(self._outputs), names, output.name, wants_classes))
        return tuple(names or self._outputs)


def _typed(contents: Any, spec: TensorSpec, shape: list[int]) -> Array:
    """The array of typed contents."""
    field = _CONTENTS.get(spec.datatype)
    if field is None:
        raise Invalid(f"Input '{spec.name}' is {spec.datatype}, which contents cannot carry: send raw_input_contents.")
    for other, _ in contents.ListFields():
        if other.name != field:
            raise Invalid(f"Input '{spec.name}' is {spec.datatype}, but has {other.name}; expected {field}.")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise Invalid(f"Input '{spec.name}' has {len(values)} elements; expected {count(shape)}.")
    if spec.datatype == "BYTES":
        return objects(list(values), shape)
    dtype = DATATYPES[spec.datatype]
    try:
        return np.array(list(values), dtype).reshape(shape)
    except OverflowError as error:
        raise out_of_range(spec) from error


def _parameters(request: Any) -> dict[str, Any]:
    chosen_of = ((parameter.key, parameter.value, parameter.value.WhichOneof("choice")) for parameter in request.parameters)
    return {key: getattr(value, choice) if choice else None for key, value, choice in chosen_of}
