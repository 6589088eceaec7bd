"""What every door keeps: an envelope without decoding, faithful tensors, errors of the caller, nothing worse from any bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import CallerError, Invalid, NotFound
from modelyard.serving.doors import DOORS
from modelyard.serving.types import Envelope
from modelyard.tensors import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),))
# How a request looks at each door: method, path of a deployment, and a body that gives x = [[1, 2], [3, 4]].
REQUESTS = {
    "oip": (
        b"POST",
        b"/v2/models/%b/infer",
        b'{"inputs":[{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}]}',
    ),
}


@pytest.fixture(params=list(DOORS))
def door(request):
    return DOORS.get(request.param)


def test_there_is_a_request_for_every_door():
    assert set(DOORS) == set(REQUESTS)


def test_it_goes_by_its_name(door):
    assert DOORS.get(door.name) is door


def test_the_headers_it_needs_are_lower_case(door):
    assert all(name == name.lower() and isinstance(name, str) for name in door.headers)


def test_the_envelope_comes_from_the_line_alone(door):
    method, path, _ = REQUESTS[door.name]
    envelope = door.envelope(method, path % b"digits")
    assert isinstance(envelope, Envelope)
    assert (envelope.door, envelope.deployment) == (door.name, "digits")


@pytest.mark.parametrize("path", [b"", b"/", b"*", b"/api/jobs", b"/healthz", b"/metrics", b"\xff\xfe", b"/" * 1000])
def test_other_paths_are_left_to_others(door, path):
    for method in (b"GET", b"POST", b"DELETE", b"OPTIONS"):
        assert door.envelope(method, path) is None


@given(st.binary(max_size=80))
def test_no_path_is_too_much(path):
    for name in DOORS:
        door = DOORS.get(name)
        envelope = door.envelope(b"POST", path)
        assert envelope is None or envelope.door == name


def test_a_call_there_and_back(door):
    codec = door.codec(SIGNATURE)
    question = codec.decode({}, REQUESTS[door.name][2])
    np.testing.assert_array_equal(question.inputs["x"], [[1, 2], [3, 4]])
    assert question.inputs["x"].dtype == np.float32
    head, body = codec.encode(question, "digits", "3", {"y": np.array([[0.5], [0.25]], np.float32)})
    assert head is None or all(isinstance(v, str) for v in head.values())
    assert b"0.5" in body
    assert b"0.25" in body


def test_an_answer_names_the_model_version_that_made_it(door):
    for model in ("cnn@3", "other@3"):
        codec = door.codec(SIGNATURE, model)
        question = codec.decode({}, REQUESTS[door.name][2])
        head, body = codec.encode(question, "digits", "3", {"y": np.array([[0.5], [0.25]], np.float32)})
        assert model in body.decode() or model in (head or {}).values()


def test_a_codec_keeps_nothing_of_a_call(door):
    codec = door.codec(SIGNATURE)
    body = REQUESTS[door.name][2]
    first, second = codec.decode({}, body), codec.decode({}, body.replace(b"4", b"9"))
    assert first.inputs["x"][1, 1] == 4
    assert second.inputs["x"][1, 1] == 9
    answers = [codec.encode(q, "d", "1", {"y": np.full((2, 1), n, np.float32)})[1] for q, n in ((first, 1.5), (second, 2.5))]
    assert b"2.5" not in answers[0]
    assert b"1.5" not in answers[1]


@given(st.binary(max_size=300), st.dictionaries(st.text(max_size=30), st.text(max_size=30), max_size=3))
def test_no_bytes_do_worse_than_a_refusal(body, head):
    for name in DOORS:
        door = DOORS.get(name)
        given_head = {**dict.fromkeys(door.headers, head.get("", "7")), **head}
        with pytest.raises(CallerError):
            door.codec(SIGNATURE).decode(given_head, body)


def test_a_wrong_tensor_is_the_callers_fault(door):
    body = REQUESTS[door.name][2].replace(b"[1,2,3,4]", b'["a","b","c","d"]')
    with pytest.raises(Invalid):
        door.codec(SIGNATURE).decode({}, body)


@pytest.mark.parametrize("error", [NotFound('no "such"\n thing'), Invalid("ünïcode")])
def test_an_error_is_json_and_says_it(door, error):
    assert error.message in json.dumps(json.loads(door.error(error)), ensure_ascii=False).replace('\\"', '"').replace(
        "\\n", "\n"
    )
