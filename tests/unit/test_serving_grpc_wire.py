"""The gateway's own protobuf against protobuf: the same names of every message, and answers that its parser reads."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from modelyard.errors import Invalid
from modelyard.serving.grpc import wire
from modelyard.serving.grpc.messages import ModelInferRequest

varints = st.one_of(st.integers(0, 300), st.integers(0, (1 << 64) - 1))
texts = st.one_of(st.text(max_size=12).map(str.encode), st.binary(max_size=12))


def field(number, kind, value):
    tag = wire._number(number << 3 | kind)
    if kind == 0:
        return tag + wire._number(value)
    if kind == 2:
        return tag + wire._number(len(value)) + value
    return tag + value


fields = st.one_of(
    st.builds(field, st.sampled_from([1, 2]), st.just(2), texts),
    st.builds(field, st.integers(1, 9), st.just(2), texts),
    st.builds(field, st.integers(1, 1 << 28), st.just(0), varints),
    st.builds(field, st.integers(1, 20), st.just(1), st.binary(min_size=8, max_size=8)),
    st.builds(field, st.integers(1, 20), st.just(5), st.binary(min_size=4, max_size=4)),
)


def parsed(message):
    try:
        request = ModelInferRequest.FromString(message)
    except DecodeError:
        return None
    return request.model_name, request.model_version


def scanned(message):
    try:
        return wire.names(message)
    except Invalid:
        return None


@given(st.lists(fields, max_size=12).map(b"".join))
def test_the_names_are_those_that_protobuf_finds(message):
    expected = parsed(message)
    assert expected is None or scanned(message) == expected


@given(st.binary(max_size=200))
def test_what_is_read_in_any_bytes_is_what_protobuf_reads(message):
    found, expected = scanned(message), parsed(message)
    assert found is None or expected is None or found == expected


@given(st.lists(fields, min_size=1, max_size=6).map(b"".join), st.integers(0, 60), st.binary(max_size=6))
def test_a_message_that_was_tampered_with_is_read_alike_or_refused(message, at, noise):
    tampered = message[:at] + noise + message[at:]
    found, expected = scanned(tampered), parsed(tampered)
    assert found is None or expected is None or found == expected


@pytest.mark.parametrize(
    ("message", "names"),
    [
        (b"", ("", "")),
        (b"\x0a\x01a\x12\x011", ("a", "1")),
        (b"\x0a\x01a\x0a\x01b", ("b", "")),
        (b"\x12\x011\x3a\x02\xff\xff\x0a\x01a", ("a", "1")),
        (b"\x08\x05\x0a\x01a", ("a", "")),
        (b"\x8a\x00\x01a", ("a", "")),
    ],
)
def test_the_last_of_a_name_counts_wherever_it_is(message, names):
    assert wire.names(message) == names == parsed(message)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0a", b"\x0a\x05a", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\xff\xff\xff\xff\xff\x01", b"\x00\x01", b"\x02\x01a",
        b"\x0b\x0c", b"\x0e\x00", b"\x0f\x00", b"\xff" * 20, b"\x08" + b"\x80" * 10 + b"\x01", b"\x0a\x01\xff",
        b"\x09\x00\x00", b"\x0d\x00\x00", b"\x0a\x81\x08" + b"x" * 1025, b"\x1a\x00" * 4097,
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(message):
    with pytest.raises(Invalid):
        wire.names(message)


def test_a_large_tensor_costs_no_more_than_a_small_one():
    tensor = bytes(50_000_000)
    message = b"\x3a" + wire._number(len(tensor)) + tensor + b"\x0a\x01a"
    assert wire.names(message) == ("a", "")


def test_answers_are_what_protobuf_reads():
    assert service_pb2.ServerLiveResponse.FromString(wire.flag(True)).live
    assert not service_pb2.ModelReadyResponse.FromString(wire.flag(False)).ready
    server = service_pb2.ServerMetadataResponse.FromString(wire.server("modelyard", "1.0", ("a", "b")))
    assert (server.name, server.version, list(server.extensions)) == ("modelyard", "1.0", ["a", "b"])
    tensor = {"name": "grün" * 50, "datatype": "FP32", "shape": [-1, 3, 1 << 40]}
    described = {
        "name": "d",
        "versions": ["3"],
        "platform": "onnx",
        "inputs": [tensor, tensor],
        "outputs": [{**tensor, "shape": []}],
    }
    model = service_pb2.ModelMetadataResponse.FromString(wire.model(described))
    assert (model.name, list(model.versions), model.platform, len(model.inputs)) == ("d", ["3"], "onnx", 2)
    assert (model.inputs[1].name, list(model.inputs[1].shape)) == (tensor["name"], tensor["shape"])
    assert list(model.outputs[0].shape) == []
