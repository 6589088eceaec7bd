"""What every door keeps: an envelope without decoding, faithful tensors, errors of the caller, nothing worse from any bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import CallerError, Invalid, NotFound
from modelyard.serving.doors import DOORS, Envelope
from modelyard.serving.grpc.messages import ModelInferRequest, ModelInferResponse
from modelyard.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
X = [[1, 2], [3, 4]]


@dataclass(frozen=True)
class Way:
    """How a call looks at a door: the path of a deployment, the body for rows of 'x', and the rows of 'y' in an answer."""

    path: bytes
    body: Callable[[list[list[float]]], bytes]
    rows: Callable[[bytes], list[list[float]]]


def oip_body(x):
    return json.dumps({"inputs": [{"name": "x", "shape": [len(x), len(x[0])], "datatype": "FP32", "data": x}]}).encode()


def oip_rows(answer):
    [output] = json.loads(answer)["outputs"]
    return np.array(output["data"]).reshape(output["shape"]).tolist()


def grpc_body(x):
    request = ModelInferRequest(model_name="digits")
    shape = [len(x), len(x[0])]
    request.inputs.add(name="x", datatype="FP32", shape=shape).contents.fp32_contents.extend(v for row in x for v in row)
    return request.SerializeToString()


def grpc_rows(answer):
    response = ModelInferResponse.FromString(answer)
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(list(response.outputs[0].shape)).tolist()


WAYS = {
    "grpc": Way(b"/\x00grpc/%b", grpc_body, grpc_rows),
    "oip": Way(b"/v2/models/%b/infer", oip_body, oip_rows),
    "v1": Way(
        b"/v1/models/%b:predict",
        lambda x: json.dumps({"instances": x}).encode(),
        lambda answer: json.loads(answer)["predictions"],
    ),
}


@pytest.fixture(params=list(DOORS))
def door(request):
    return DOORS.get(request.param)


@pytest.fixture
def way(door):
    return WAYS[door.name]


def test_there_is_a_way_through_every_door():
    assert set(DOORS) == set(WAYS)


def test_it_goes_by_its_name(door):
    assert DOORS.get(door.name) is door


def test_the_headers_it_needs_are_lower_case(door):
    assert all(name == name.lower() and isinstance(name, str) for name in door.headers)


def test_the_envelope_comes_from_the_line_alone(door, way):
    envelope = door.envelope(b"POST", way.path % b"digits")
    assert isinstance(envelope, Envelope)
    assert (envelope.door, envelope.deployment, envelope.version) == (door.name, "digits", None)
    assert door.envelope(b"GET", way.path % b"digits") is None


def test_one_door_alone_answers_a_path(door, way):
    assert [name for name in DOORS if DOORS.get(name).envelope(b"POST", way.path % b"digits")] == [door.name]


@pytest.mark.parametrize("path", [b"", b"/", b"*", b"/api/jobs", b"/healthz", b"/metrics", b"\xff\xfe", b"/" * 1000])
def test_other_paths_are_left_to_others(door, path):
    for method in (b"GET", b"POST", b"DELETE", b"OPTIONS"):
        assert door.envelope(method, path) is None


def test_another_spelling_is_another_path(door, way):
    """Nothing is folded, joined or cut on the way to a door: who judges a path judges what was sent."""
    path = way.path % b"digits"
    for other in (path.upper(), b"/" + path, path + b"/", path + b";x", path + b"?x", path + b"%00", b"/x/.." + path):
        envelope = door.envelope(b"POST", other)
        assert envelope is None or envelope.deployment != "digits", other


@given(st.binary(max_size=80))
def test_no_path_is_too_much(path):
    for name in DOORS:
        door = DOORS.get(name)
        envelope = door.envelope(b"POST", path)
        assert envelope is None or envelope.door == name


def test_a_call_there_and_back(door, way):
    codec = door.codec(SIGNATURE)
    question = codec.decode({}, way.body(X))
    np.testing.assert_array_equal(question.inputs["x"], X)
    assert question.inputs["x"].dtype == np.float32
    assert question.outputs == ("y",)
    head, body = codec.encode(question, "digits", "3", {"y": np.array([[0.5], [0.25]], np.float32)})
    assert head is None or all(isinstance(v, str) for v in head.values())
    assert way.rows(body) == [[0.5], [0.25]]


def test_an_answer_names_the_model_version_that_made_it(door, way):
    for model in ("cnn@3", "other@3"):
        codec = door.codec(SIGNATURE, model)
        question = codec.decode({}, way.body(X))
        head, body = codec.encode(question, "digits", "3", {"y": np.array([[0.5], [0.25]], np.float32)})
        assert model.encode() in body or model in (head or {}).values()


def test_a_codec_keeps_nothing_of_a_call(door, way):
    codec = door.codec(SIGNATURE)
    first, second = codec.decode({}, way.body(X)), codec.decode({}, way.body([[1, 2], [3, 9]]))
    assert first.inputs["x"][1, 1] == 4
    assert second.inputs["x"][1, 1] == 9
    answers = [codec.encode(q, "d", "1", {"y": np.full((2, 1), n, np.float32)})[1] for q, n in ((first, 1.5), (second, 2.5))]
    assert [way.rows(answer) for answer in answers] == [[[1.5], [1.5]], [[2.5], [2.5]]]


@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=3))
def test_no_bytes_do_worse_than_a_refusal(body, head):
    for name in DOORS:
        door = DOORS.get(name)
        given_head = {**dict.fromkeys(door.headers, head.get("", "7")), **head}
        with pytest.raises(CallerError):
            door.codec(SIGNATURE).decode(given_head, body)


@pytest.mark.parametrize("x", [[[1, 2, 3]], [[1], [2]]])
def test_a_wrong_shape_is_the_callers_fault_and_said(door, way, x):
    with pytest.raises(Invalid, match=r"'x'.*shape \[\d, \d\]; expected \[-1, 2\]"):
        door.codec(SIGNATURE).decode({}, way.body(x))


@pytest.mark.parametrize("error", [NotFound('no "such"\n thing'), Invalid("ünïcode")])
def test_an_error_is_json_and_says_it(door, error):
    assert json.loads(door.error(error)) == {"error": error.message}
