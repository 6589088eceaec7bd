"""Tensors by gRPC: every datatype there and back, raw and typed, and what a wrong one is told."""

from __future__ import annotations

import numpy as np
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.utils import serialize_byte_tensor

from modelyard.errors import Invalid
from modelyard.serving.grpc.codec import _CONTENTS
from modelyard.serving.grpc.door import GRPC, target
from modelyard.tensors import DATATYPES, Signature, TensorSpec

VALUES = {"BOOL": [[True, False]], "BYTES": [[b"\xff\x00", b""]], "BF16": [[1, 65535]]}


def codec(datatype="FP32", shape=(-1, 2)):
    return GRPC.codec(
        Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape), TensorSpec("z", "FP32", (-1,))))
    )


def array_of(datatype):
    return np.array(VALUES.get(datatype, [[1, 2]]), np.uint16 if datatype == "BF16" else DATATYPES[datatype])


def request_of(datatype, raw=None, shape=(1, 2), **contents):
    request = service_pb2.ModelInferRequest(model_name="d", id="mine")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def decoded(request, **kinds):
    return codec(**kinds).decode({}, request.SerializeToString())


def refusal(request, **kinds):
    with pytest.raises(Invalid) as caught:
        decoded(request, **kinds)
    return caught.value.message


@pytest.mark.parametrize("datatype", [*DATATYPES, "BF16"])
def test_raw_there_and_back(datatype):
    array = array_of(datatype)
    raw = serialize_byte_tensor(array).item() if datatype == "BYTES" else array.tobytes()
    question = decoded(request_of(datatype, raw), datatype=datatype)
    np.testing.assert_array_equal(question.inputs["x"], array)
    assert question.outputs == ("y", "z")
    _, body = codec(datatype).encode(question, "d", "3", {"y": array, "z": np.zeros(1, np.float32)})
    answer = service_pb2.ModelInferResponse.FromString(body)
    assert (answer.model_name, answer.model_version, answer.id, answer.raw_output_contents[0]) == ("d", "3", "mine", raw)
    assert (answer.outputs[0].name, answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("y", datatype, [1, 2])


@pytest.mark.parametrize("datatype", _CONTENTS)
def test_typed_contents(datatype):
    array = array_of(datatype)
    question = decoded(request_of(datatype, **{_CONTENTS[datatype]: array.ravel().tolist()}), datatype=datatype)
    np.testing.assert_array_equal(question.inputs["x"], array)
    assert question.inputs["x"].dtype == array.dtype


def test_outputs_and_parameters_are_those_asked_for():
    request = request_of("FP32", np.ones((1, 2), "<f4").tobytes())
    for name in ("z", "y"):
        request.outputs.add(name=name)
    request.parameters["a"].int64_param = 7
    request.parameters["b"].string_param = "x"
    request.parameters["c"].bool_param = False
    question = decoded(request)
    assert question.outputs == ("z", "y")
    assert question.parameters == {"a": 7, "b": "x", "c": False}


@pytest.mark.parametrize(
    ("request_", "kinds", "says"),
    [
        (request_of("INT8", int_contents=[128, 0]), {"datatype": "INT8"}, "a number outside the range of INT8"),
        (request_of("UINT16", uint_contents=[65536, 0]), {"datatype": "UINT16"}, "a number outside the range of UINT16"),
        (request_of("FP16", fp32_contents=[1, 2]), {"datatype": "FP16"}, "FP16, which contents cannot carry"),
        (request_of("FP32", fp64_contents=[1, 2]), {}, "is FP32, but has fp64_contents; expected fp32_contents"),
        (request_of("FP32", fp32_contents=[1]), {}, "Input 'x' has 1 elements; expected 2, the product of shape [1, 2]"),
        (request_of("FP32"), {}, "Input 'x' has 0 elements; expected 2"),
        (request_of("FP32", b"123"), {}, "Input 'x' has 3 bytes; expected 8"),
        (request_of("FP32", b"12345678", fp32_contents=[1, 2]), {}, "both contents and raw_input_contents"),
        (request_of("FP32", fp32_contents=[1, 2], shape=(1 << 50, 2)), {}, "expected sizes from 1 to"),
        (request_of("BYTES", b"\x05\0\0\0a"), {"datatype": "BYTES"}, "no sequence of 2 length-prefixed elements: see byte 0"),
    ],
)
def test_a_wrong_tensor_is_named(request_, kinds, says):
    assert says in refusal(request_, **kinds)


def test_classification_is_not_offered():
    request = request_of("FP32", bytes(8))
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    assert "the classification extension is not offered" in refusal(request)


def test_a_deployment_is_asked_for_by_a_name_that_no_http_request_has():
    for name, version in (("digits", ""), ("a/b\0?#%", "3"), ("grün", "1/2")):
        envelope = GRPC.envelope(b"POST", target(name, version).partition(b"?")[0])
        assert (envelope.deployment, envelope.version) == (name, version or None)
        assert b"\0" in target(name, version)
    with pytest.raises(Invalid, match="no model_name"):
        target("", "")
