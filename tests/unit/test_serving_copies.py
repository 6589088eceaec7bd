"""A call sent again with the answer that was given: what the replica compares, and what it says of it."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest

from modelyard.serving.copies import Comparing, copied_head
from modelyard.serving.doors import DOORS
from modelyard.serving.grpc.messages import ModelInferRequest
from modelyard.serving.oip import OipCodec
from modelyard.tensors import Signature, TensorSpec

SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, 2)))
)
BODY = json.dumps({"inputs": [{"name": "x", "shape": [3, 2], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}).encode()
BINARY = json.dumps({**json.loads(BODY), "parameters": {"binary_data_output": True}}).encode()

ASKED = ModelInferRequest(raw_input_contents=[np.arange(6, dtype=np.float32).tobytes()])
ASKED.inputs.add(name="x", datatype="FP32", shape=[3, 2])
REQUESTS = {"v1": json.dumps({"instances": [[1, 2], [3, 4], [5, 6]]}).encode(), "grpc": ASKED.SerializeToString()}


def outputs(*labels: str, spread: float = 0.0):
    names = np.array([label.encode() for label in labels], object)
    return {"label": names, "scores": np.full((len(labels), 2), 0.5 + spread, np.float32)}


def compared(body: bytes, given, ours, *, packed: bool = False, head=None):
    """What a shadow says that answers `ours` where the caller was given `given`."""
    codec = OipCodec(SIGNATURE)
    answer_head, answer = codec.encode(codec.decode({}, body), "d", "1", given)
    if packed:
        answer, answer_head = gzip.compress(answer), {**(answer_head or {}), "content-encoding": "gzip"}
    told = copied_head(head or {}, answer_head, len(answer))
    comparing = Comparing(OipCodec(SIGNATURE), "image-classification")
    question = comparing.decode(told, body + answer)
    np.testing.assert_array_equal(question.inputs["x"], [[1, 2], [3, 4], [5, 6]])
    said_head, said = comparing.encode(question, "d", "2", ours)
    assert said_head is None
    return json.loads(said)


@pytest.mark.parametrize("body", [BODY, BINARY])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_that_differ_are_counted(body, packed):
    given = outputs("one", "two", "three")
    assert compared(body, given, outputs("one", "two", "three", spread=0.01), packed=packed) == [3, 0]
    assert compared(body, given, outputs("one", "two", "four"), packed=packed) == [3, 1]


def test_an_answer_of_another_kind_differs_wholly():
    codec = OipCodec(Signature(SIGNATURE.inputs, (TensorSpec("y", "FP32", (-1, 1)),)))
    _, answer = codec.encode(codec.decode({}, BODY), "d", "1", {"y": np.zeros((3, 1), np.float32)})
    comparing = Comparing(OipCodec(SIGNATURE), "image-classification")
    question = comparing.decode(copied_head({}, None, len(answer)), BODY + answer)
    assert json.loads(comparing.encode(question, "d", "2", outputs("a", "b", "c"))[1]) == [3, 3]
    question = comparing.decode(copied_head({}, {"content-encoding": "gzip"}, 4), BODY + b"junk")
    assert json.loads(comparing.encode(question, "d", "2", outputs("a", "b", "c"))[1]) == [3, 3]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("task", ["tabular-regression", "image-classification", "feature-extraction"])
@pytest.mark.parametrize(
    ("given", "ours", "differ"),
    [
        ([[NAN, 1], [2, 3]], [[NAN, 1], [2, 3]], 0),
        ([[INF, 1], [-INF, 3]], [[INF, 1], [-INF, 3]], 0),
        ([[INF, NAN], [1e30, 3]], [[INF, NAN], [1e30, 3]], 0),
        ([[NAN, 1], [2, 3]], [[2, 1], [2, 3]], 1),
        ([[], []], [[], []], 0),
    ],
)
def test_nonsense_agrees_with_the_same_nonsense_alone(binary, task, given, ours, differ):
    signature = Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, -1)),))
    asked = {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    body = json.dumps({**asked, "parameters": {"binary_data_output": binary}}).encode()
    codec = OipCodec(signature)
    answer_head, answer = codec.encode(codec.decode({}, body), "d", "1", {"y": np.array(given, np.float32)})
    comparing = Comparing(OipCodec(signature), task)
    question = comparing.decode(copied_head({}, answer_head, len(answer)), body + answer)
    assert json.loads(comparing.encode(question, "d", "2", {"y": np.array(ours, np.float32)})[1]) == [2, differ]


@pytest.mark.parametrize(("given", "ours", "differ"), [("abc", "abc", 0), ("abc", "abd", 1), ("abc", "dea", 3)])
@pytest.mark.parametrize("door", ["v1", "grpc"])
def test_answers_of_the_other_doors_are_compared_too(door, given, ours, differ):
    codec, body = DOORS.get(door).codec(SIGNATURE), REQUESTS[door]
    head, answer = codec.encode(codec.decode({}, body), "d", "1", outputs(*given))
    comparing = Comparing(DOORS.get(door).codec(SIGNATURE), "image-classification")
    question = comparing.decode(copied_head({}, head, len(answer)), body + answer)
    assert json.loads(comparing.encode(question, "d", "2", outputs(*ours))[1]) == [3, differ]
    strange = comparing.decode(copied_head({}, head, 2), body + b"{]")
    assert json.loads(comparing.encode(strange, "d", "2", outputs(*ours))[1]) == [3, 3]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("door", ["v1", "grpc"])
def test_nonsense_agrees_with_its_like_over_the_other_doors(door, value):
    signature = Signature(
        (TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, -1)), TensorSpec("n", "INT64", (-1,)))
    )
    codec, body = DOORS.get(door).codec(signature), REQUESTS[door]
    odd = {"y": np.array([[1, value]] * 3, np.float32), "n": np.array([1, 2, 3])}
    head, answer = codec.encode(codec.decode({}, body), "d", "1", odd)
    comparing = Comparing(codec, "tabular-regression")
    question = comparing.decode(copied_head({}, head, len(answer)), body + answer)
    assert json.loads(comparing.encode(question, "d", "2", odd)[1]) == [3, 0]
    question = comparing.decode(copied_head({}, head, len(answer)), body + answer)
    other = {**odd, "n": np.array([1, 2, 4])}
    assert json.loads(comparing.encode(question, "d", "2", other)[1]) == [3, 1]


def test_how_the_callers_answer_is_to_be_coded_is_not_how_the_copys_is():
    told = copied_head({"accept": "text/event-stream", "gzip-from": "0", "x-request-id": "r"}, {"content-type": "x"}, 7)
    assert told == {"x-request-id": "r", "x-answer-content-type": "x", "x-answer-size": "7"}
