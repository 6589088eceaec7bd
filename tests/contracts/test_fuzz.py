"""Whatever bytes come from outside: paths, the names in a message, bodies of every door, gzip, frames of the inner wire.

Each target has a corpus, `corpus/NAME.txt`, one bytes literal a line: well-formed things to start from, and every input that
was ever interesting. All of it runs always; mutations of it 200 times here and 10,000 times in `make soak`. An input that fails
is printed as a literal: add it.
"""

from __future__ import annotations

import ast
import gzip
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelyard.errors import CallerError, Invalid
from modelyard.serving import coding, frames
from modelyard.serving.agreement import disagreeing
from modelyard.serving.doors import DOORS
from modelyard.serving.grpc import wire
from modelyard.serving.grpc.messages import ModelInferRequest
from modelyard.serving.oip import HEADER_LENGTH
from modelyard.tensors import DATATYPES, Signature, TensorSpec

CORPUS = Path(__file__).parent / "corpus"
LIMIT = 10_000
SIGNATURES = (
    Signature((TensorSpec("x", "FP32", (-1, 2)),), (TensorSpec("y", "FP32", (-1, 1)),)),
    Signature((TensorSpec("x", "INT8", None), TensorSpec("s", "BYTES", (-1,))), (TensorSpec("y", "BYTES", (-1,)),)),
)
# What is known to stand at the edges of things.
TOKENS = st.sampled_from(
    [
        b'"', b"\\", b"{", b"}", b"[", b"[[", b"]", b",", b":", b"null", b"NaN", b"1e999", b"-1", b"0.0", b"128", b"true",
        b"\\ud800", b"18446744073709551616", b'"shape":[', b'"b64":', b'"binary_data_size":',
        b"\0", b"\xff", b"\xc0\x80", b"\x0a", b"\x12", b"\x3a\x00", b"\x1f\x8b\x08",
        b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
        b"/", b"//", b"%2f", b"%00", b"..", b":predict", b"%3Apredict", b"/versions/", b"infer",
    ]
)  # fmt: skip


def path(data: bytes) -> None:
    """A door answers exactly the paths that cutting at the slashes says it does."""
    parts = data.split(b"/")
    oip = parts[:3] == [b"", b"v2", b"models"] and parts[-1] == b"infer" and all(parts[3:])
    oip = oip and (len(parts) == 5 or (len(parts) == 7 and parts[4] == b"versions"))
    verb = next((end for end in (b":predict", b"%3apredict", b"%3Apredict") if data.endswith(end)), b"")
    v1 = len(parts) == 4 and parts[:3] == [b"", b"v1", b"models"] and verb != b"" and parts[3] != verb
    rpc = len(parts) in (3, 4) and parts[:2] == [b"", b"\0grpc"] and all(parts[2:])
    for name, expected in (("oip", oip), ("v1", v1), ("grpc", rpc)):
        envelope = DOORS.get(name).envelope(b"POST", data)
        assert (envelope is not None) == expected, name
        assert envelope is None or envelope.door == name
        assert DOORS.get(name).envelope(b"GET", data) is None


def scan(data: bytes) -> None:
    """What the gateway reads is what protobuf reads, or one of them refuses."""
    try:
        found = wire.names(data)
    except Invalid:
        return
    try:
        request = ModelInferRequest.FromString(data)
    except DecodeError:
        return
    assert found == (request.model_name, request.model_version)


def body(name: str, data: bytes) -> None:
    """A refusal of the caller, or arrays just as the signature says; and what was understood can be answered."""
    head = {HEADER_LENGTH: str(data.rfind(b"}") + 1)} if name == "oip" and b"binary_data_size" in data else {}
    for signature in SIGNATURES:
        codec = DOORS.get(name).codec(signature)
        try:
            question = codec.decode(head, data)
            inputs = dict(question.inputs)
        except CallerError:
            continue
        assert set(inputs) == {spec.name for spec in signature.inputs}
        for spec in signature.inputs:
            array = inputs[spec.name]
            assert array.dtype == DATATYPES[spec.datatype]
            assert spec.shape is None or len(spec.shape) == array.ndim
            assert all(size in (-1, there) for size, there in zip(spec.shape or array.shape, array.shape, strict=True))
            assert spec.datatype != "BYTES" or all(isinstance(element, bytes) for element in array.ravel())
        answer = {"y": np.array([[0.5]], np.float32) if signature.outputs[0].datatype == "FP32" else np.array([b"y"], object)}
        assert codec.encode(question, "d", "1", answer)[1]


def answer(data: bytes) -> None:
    """What a shadow's replica reads of the answer beside a copied call: outputs of its own model, or a refusal; never more."""
    head = {HEADER_LENGTH: str(data.rfind(b"}") + 1)} if b"binary_data_size" in data else {}
    for door, signature in product(("oip", "v1", "grpc"), SIGNATURES):
        known = {spec.name: spec for spec in signature.outputs}
        try:
            outputs = DOORS.get(door).codec(signature).answered(head, data)
        except Invalid:
            continue
        assert set(outputs) <= set(known)
        for name, array in outputs.items():
            assert array.dtype == DATATYPES[known[name].datatype]
            assert array.ndim == len(known[name].shape or ())
            assert known[name].datatype != "BYTES" or all(isinstance(element, bytes) for element in array.ravel())
        assert disagreeing("tabular-regression", outputs, outputs)[1] == 0


def packed(data: bytes) -> None:
    """What is unpacked is what another reader unpacks, and never more than the limit."""
    try:
        found = coding.unpack("gzip", LIMIT, data)
    except CallerError:
        return
    assert len(found) <= LIMIT
    assert gzip.decompress(data) == found


def inner(data: bytes) -> None:
    """Frames do not depend on how the bytes were cut, and what is held is bounded."""
    found = fed(data, len(data) or 1)
    assert found == fed(data, 1) == fed(data, 7)
    for frame in found or []:
        again = bytearray()
        frames.append(again, frame)
        assert frames.Decoder().feed(bytes(again)) == [frame]


def fed(data: bytes, size: int) -> list[frames.Frame] | None:
    """The frames of bytes that come `size` at a time; None where they are none."""
    decoder, got = frames.Decoder(), []
    try:
        for at in range(0, len(data), size):
            got += decoder.feed(data[at : at + size])
            assert len(decoder._rest) <= frames.MAX_FRAME + 4
    except Invalid:
        return None
    return got


TARGETS = {
    "path": path,
    "scan": scan,
    "oip": lambda data: body("oip", data),
    "v1": lambda data: body("v1", data),
    "grpc": lambda data: body("grpc", data),
    "answer": answer,
    "gzip": packed,
    "frames": inner,
}


def corpus(target: str) -> list[bytes]:
    return [ast.literal_eval(line) for line in (CORPUS / f"{target}.txt").read_text().splitlines()]


@st.composite
def mutated(draw, seeds):
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 6))] = draw(TOKENS | st.binary(max_size=8))
    return bytes(data)


def fuzz(target: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(corpus(target)))
    def run(data):
        TARGETS[target](data)

    run()


@pytest.mark.parametrize("target", TARGETS)
def test_everything_that_was_ever_interesting(target):
    seeds = corpus(target)
    assert len(seeds) >= 10
    for data in seeds:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_mutations(target):
    fuzz(target, 200)


@pytest.mark.soak
@pytest.mark.parametrize("target", TARGETS)
def test_many_mutations(target):
    fuzz(target, 10_000)
