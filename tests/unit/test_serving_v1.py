"""KServe's V1: the path, instances of one and of several inputs, and what a wrong request is told."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from modelyard.errors import Invalid
from modelyard.serving.v1 import V1
from modelyard.tensors import Signature, TensorSpec

Y = (TensorSpec("y", "FP32", (-1, 1)),)
PAIR = Signature(
    (TensorSpec("age", "INT64", (-1,)), TensorSpec("name", "BYTES", (-1, 1))),
    (TensorSpec("score", "FP64", (-1,)), TensorSpec("label", "BYTES", (-1,))),
)


def one(datatype="FP32", shape=(-1, 2), outputs=Y):
    return V1.codec(Signature((TensorSpec("x", datatype, shape),), outputs))


def decoded(codec, instances, **more):
    return codec.decode({}, json.dumps({"instances": instances, **more}).encode())


def refusal(codec, instances):
    with pytest.raises(Invalid) as caught:
        decoded(codec, instances)
    return caught.value.message


# The path


@pytest.mark.parametrize(
    ("path", "deployment"),
    [
        (b"/v1/models/digits:predict", "digits"),
        (b"/v1/models/d%69gits%3Apredict", "digits"),
        (b"/v1/models/digits%3apredict", "digits"),
        (b"/v1/models/a:b:predict", "a:b"),
        (b"/v1/models/%2e%2e:predict", ".."),
        (b"/v1/models/a%2Fb:predict", "a/b"),
    ],
)
def test_the_deployment_is_what_stands_before_the_verb(path, deployment):
    envelope = V1.envelope(b"POST", path)
    assert (envelope.deployment, envelope.version, envelope.verb) == (deployment, None, "infer")


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/models/digits:Predict", b"/V1/models/digits:predict", b"/v1/models/digits%253Apredict", b"/v1/models/:predict",
        b"/v1/models/digits:predict:explain", b"/v1/models/digits", b"/v1/models/digits/predict", b"/v1/models/a/b:predict",
        b"/v1/models/digits:explain", b"/v1/models/digits:predict\n", b"/v1/chat/completions", b"/v1/models/digits:pr%65dict",
    ],
)  # fmt: skip
def test_other_paths_are_not_ours(path):
    assert V1.envelope(b"POST", path) is None


# One input


@pytest.mark.parametrize(
    ("datatype", "shape", "instances"),
    [
        ("FP32", (-1, 2), [[1, 2.5], [3, 4]]),
        ("FP64", (-1,), [1, 2.5]),
        ("INT8", (-1, 1, 2), [[[1, -128]]]),
        ("UINT64", (-1,), [2**64 - 1]),
        ("BOOL", (-1, 2), [[True, False]]),
        ("FP32", None, [[[1, 2]], [[3, 4]]]),
        ("INT32", None, [7]),
    ],
)
def test_instances_are_the_rows(datatype, shape, instances):
    array = decoded(one(datatype, shape), instances).inputs["x"]
    np.testing.assert_array_equal(array, np.array(instances, array.dtype))
    assert array.shape == np.array(instances).shape


def test_bytes_are_strings_or_base64():
    image = bytes(range(256))
    array = decoded(one("BYTES", (-1,)), ["grün", {"b64": base64.b64encode(image).decode()}, ""]).inputs["x"]
    assert array.tolist() == ["grün".encode(), image, b""]
    assert array.dtype == object


def test_parameters_come_with_the_call():
    assert decoded(one(), [[1, 2]], parameters={"a": 1}, signature_name="x").parameters == {"a": 1}


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ([], "There are no instances; expected one at least."),
        ([[]], "Input 'x' has shape [1, 0]; expected [-1, 2]."),
        ([[1, 2, 3]], "Input 'x' has shape [1, 3]; expected [-1, 2]."),
        ([[1, 2], [3]], "Input 'x' has 1 elements in dim 1; expected 2 as in the first row."),
        ([[1, 2], 3], "an instance is not: Expected `array`, got `int` - at `$[1]`."),
        ([1, 2], "Input 'x' is FP32 [-1, 2], but an instance is not: Expected `array`, got `int` - at `$[0]`."),
        ([[1, "2"]], "but an instance is not: Expected `float`, got `str` - at `$[0][1]`."),
        ([[1, None]], "but an instance is not: Expected `float`, got `null` - at `$[0][1]`."),
        ([[1, True]], "but an instance is not: Expected `float`, got `bool` - at `$[0][1]`."),
        ([{"x": [1, 2]}], "but an instance is not: Expected `array`, got `object` - at `$[0]`."),
        ([[[1, 2]]], "but an instance is not: Expected `float`, got `array` - at `$[0][0]`."),
        ([[1, 1e39]], "Input 'x' has a number outside the range of FP32."),
        ({"x": 1}, "but an instance is not: Expected `array`, got `object`."),
        (7, "but an instance is not: Expected `array`, got `int`."),
    ],
)
def test_a_wrong_instance_is_named(instances, says):
    assert says in refusal(one(), instances)


@pytest.mark.parametrize(
    ("datatype", "instances", "says"),
    [
        ("INT8", [128], "a number outside the range of INT8"),
        ("INT8", [1.0], "Expected `int`, got `float` - at `$[0]`"),
        ("UINT8", [-1], "a number outside the range of UINT8"),
        ("BOOL", [1], "Expected `bool`, got `int` - at `$[0]`"),
        ("BYTES", [7], "Expected `str | object`, got `int` - at `$[0]`"),
        ("BYTES", [{"b64": "ä"}], "an element whose b64 is not base64"),
        ("BYTES", [{"b64": "abc"}], "an element whose b64 is not base64"),
        ("BYTES", [{"text": "abc"}], "Object missing required field `b64` - at `$[0]`"),
        ("FP16", [1.0], "Input 'x' is FP16, which JSON cannot carry: send it to /v2 as binary."),
        ("BF16", [1.0], "Input 'x' is BF16, which JSON cannot carry: send it to /v2 as binary."),
    ],
)
def test_a_wrong_element_is_named(datatype, instances, says):
    assert says in refusal(one(datatype, (-1,)), instances)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"hello", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `instances`"),
        (b'{"inputs":[[1,2]]}', "missing required field `instances`"),
        (b'{"instances":[[NaN,1]]}', "not valid JSON"),
        (b'{"instances":[[1e999,1]]}', "out of range"),
        (b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"instances":[[1,2]]} x', "not valid JSON"),
    ],
)
def test_what_is_no_request_is_said(body, says):
    with pytest.raises(Invalid) as caught:
        one().decode({}, body)
    assert says in caught.value.message


def test_an_output_that_json_cannot_carry_is_refused_before_it_is_computed():
    codec = one(outputs=(TensorSpec("y", "BF16", (-1, 1)),))
    assert refusal(codec, [[1, 2]]) == "Output 'y' is BF16, which JSON cannot carry: use /v2 and ask for binary_data."


# Several inputs and outputs


def test_objects_by_name_there_and_back():
    codec = V1.codec(PAIR)
    question = decoded(codec, [{"age": 1, "name": ["a"]}, {"name": [{"b64": "/w=="}], "age": 2}])
    assert question.inputs["age"].tolist() == [1, 2]
    assert question.inputs["name"].tolist() == [[b"a"], [b"\xff"]]
    outputs = {"score": np.array([0.5, np.nan]), "label": np.array([b"cat", b"\xff"], object)}
    head, body = codec.encode(question, "d", "1", outputs)
    assert head is None
    predictions = [{"score": 0.5, "label": "cat"}, {"score": None, "label": {"b64": "/w=="}}]
    assert json.loads(body) == {"predictions": predictions}


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ([[1, "a"]], "a list of objects by input name, as 2 inputs need: Expected `object`, got `array` - at `$[0]`"),
        ({"age": [1]}, "as 2 inputs need: Expected `array`, got `object`"),
        ([{"age": 1}], "Input missing: expected also 'name' BYTES [-1, 1]."),
        ([{"age": 1, "name": ["a"], "size": 1}], "Input 'size' is not known; expected: 'age', 'name'."),
        ([{"age": 1, "name": ["a"]}, {"age": "2", "name": ["b"]}], "Expected `int`, got `str` - at `$[1]`"),
        ([{"age": 1, "name": ["a"]}, {"age": 2, "name": []}], "Input 'name' has 0 elements in dim 1; expected 1"),
        ([], "There are no instances; expected one at least."),
    ],
)
def test_a_wrong_object_is_named(instances, says):
    assert says in refusal(V1.codec(PAIR), instances)


def test_one_output_is_its_rows():
    codec = one()
    question = decoded(codec, [[1, 2], [3, 4]])
    _, body = codec.encode(question, "d", "1", {"y": np.array([[1.5], [np.inf]], np.float32)})
    assert json.loads(body) == {"predictions": [[1.5], [None]]}
