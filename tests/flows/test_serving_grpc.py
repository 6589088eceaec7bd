"""A real gateway with its gRPC port, a real replica; called by tritonclient and by raw calls of gRPC."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_serving_dataplane import INFER, Yard, expected, request_of, rows, until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from modelyard.serving.grpc.server import SERVICE
from modelyard.tenancy.types import Scope

LIMIT = 20_000_000
METHODS = ("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer")
OPEN = {"ServerLive", "ServerReady"}


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    made = Yard(tmp_path_factory.mktemp("grpc"), grpc=True, call_timeout=20, body_limit=LIMIT)
    try:
        made.replica("one")
        made.process = made.gateway()
        made.calls = f"127.0.0.1:{made.port + 1}"
        yield made
    finally:
        made.close()


@pytest.fixture
def client(yard):
    with triton.InferenceServerClient(yard.calls) as client:
        yield client


@pytest.fixture
def auth(yard):
    return {"authorization": f"Bearer {yard.key}"}


@pytest.fixture
def channel(yard):
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(yard.calls, options=options) as channel:
        yield channel


def call(channel, method, message=b"", key=None, **options):
    """The answer's bytes of a raw call; grpc.RpcError with code() and details() where there is none."""
    metadata = [("authorization", f"Bearer {key}")] if key else []
    return channel.unary_unary(f"/{SERVICE}/{method}")(
        message, metadata=metadata, timeout=options.pop("timeout", 15), **options
    )


def refused(channel, method, message=b"", key=None, **options):
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, message, key, **options)
    return caught.value.code(), caught.value.details()


def question(x, name="x", datatype="FP32"):
    given_ = triton.InferInput(name, list(x.shape), datatype)
    given_.set_data_from_numpy(x)
    return given_


def message(x, model="simple", **fields):
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[x.tobytes()], **fields)
    request.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return request


# Calls


def test_tritonclient_unmodified(client, auth):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple", headers=auth)
    assert client.is_model_ready("simple", "1", headers=auth)
    assert client.get_server_metadata(headers=auth).name == "modelyard"
    described = client.get_model_metadata("simple", headers=auth)
    assert (described.name, described.versions, described.platform) == ("simple", ["1"], "modelyard_onnx")
    [x], [y] = described.inputs, described.outputs
    assert (x.name, x.datatype, x.shape, y.name, y.shape) == ("x", "FP32", [-1, 10], "y", [-1, 1])
    for count, version in ((1, ""), (7, "1"), (500, "")):
        given_ = rows(count)
        asked = [triton.InferRequestedOutput("y")] if version else None
        result = client.infer("simple", [question(given_)], version, asked, request_id="mine", headers=auth)
        np.testing.assert_allclose(result.as_numpy("y"), expected(given_), rtol=1e-3, atol=1e-4)
        assert (result.get_response().id, result.get_response().model_version) == ("mine", "1")
    key = {"x-api-key": auth["authorization"].removeprefix("Bearer ")}
    assert client.infer("simple", [question(rows(1))], headers=key).as_numpy("y").shape == (1, 1)


def test_typed_contents(yard, channel):
    x = rows(3)
    request = service_pb2.ModelInferRequest(model_name="simple")
    request.inputs.add(name="x", datatype="FP32", shape=x.shape).contents.fp32_contents.extend(x.ravel())
    answer = service_pb2.ModelInferResponse.FromString(call(channel, "ModelInfer", request.SerializeToString(), yard.key))
    [raw] = answer.raw_output_contents
    np.testing.assert_allclose(np.frombuffer(raw, "<f4").reshape(3, 1), expected(x), rtol=1e-4, atol=1e-4)


def test_calls_by_grpc_and_http_at_once_never_cross(yard, client, auth):
    def one(number):
        x = rows(1 + number % 3, seed=number)
        if number % 2:
            answer = client.infer("simple", [question(x)], headers=auth).as_numpy("y")
        else:
            output = http.post(yard.url + INFER, json=request_of(x)).json()["outputs"][0]
            answer = np.array(output["data"]).reshape(output["shape"])
        np.testing.assert_allclose(answer, expected(x), rtol=1e-4, atol=1e-4)
        return 1

    with httpx.Client(headers=auth, timeout=20) as http, ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(one, range(300))) == 300


def test_every_call_is_metered_as_over_http(yard, client, auth):
    before = yard.settled()
    for _ in range(20):
        client.infer("simple", [question(rows(3))], headers=auth)
    with pytest.raises(InferenceServerException):
        client.infer("simple", [question(rows(3)[:, :2])], headers=auth)
    after = until(lambda: (now := yard.settled())["calls"] == before["calls"] + 21 and now)
    assert (after["units"] - before["units"], after["errors"] - before["errors"]) == (60, 1)
    metrics = httpx.get(f"{yard.url}/metrics", headers=auth).text
    assert 'modelyard_calls_total{code="400",model="simple",project="default",version="1"}' in metrics


# Refusals


def test_no_method_answers_without_a_key(yard, channel):
    named = service_pb2.ModelInferRequest(model_name="simple").SerializeToString()
    before = yard.settled(0.3)
    for method in METHODS:
        for key in (None, "nonsense", yard.key[:-1] + ("0" if yard.key[-1] != "0" else "1")):
            if method in OPEN:
                assert call(channel, method, b"", key) == b"\x08\x01"
            else:
                code, details = refused(channel, method, named, key)
                assert code == grpc.StatusCode.UNAUTHENTICATED, method
                assert "simple" not in details
    for method in ("ServerLive2", "RepositoryIndex", "ModelStreamInfer", ""):
        assert refused(channel, method)[0] == grpc.StatusCode.UNIMPLEMENTED
    assert yard.settled(0.3) == before


def test_a_revoked_key_is_refused_within_a_second(yard, client):
    fresh = yard.create_key(Scope.infer)
    headers = {"authorization": f"Bearer {fresh}"}
    assert client.infer("simple", [question(rows(1))], headers=headers)
    yard.revoke(fresh)
    time.sleep(1.0)
    with pytest.raises(InferenceServerException, match="revoked") as caught:
        client.infer("simple", [question(rows(1))], headers=headers)
    assert caught.value.status() == "StatusCode.UNAUTHENTICATED"


WRONG = [
    ({"name": "z"}, "Input 'z' is not known; expected: 'x' FP32 [-1, 10]."),
    ({"datatype": "INT8"}, "Input 'x' has datatype 'INT8'; expected FP32."),
    ({"shape": [10, 1]}, "Input 'x' has shape [10, 1]; expected [-1, 10]."),
    ({"shape": [1, 10, 1]}, "Input 'x' has shape [1, 10, 1]; expected [-1, 10]."),
    ({"shape": [0, 10]}, "expected sizes from 1 to"),
    ({"shape": [-1, 10]}, "expected sizes from 1 to"),
    ({"shape": [1 << 62, 10]}, "expected sizes from 1 to"),
    ({"shape": [2, 10]}, "Input 'x' has 40 bytes; expected 80 for shape [2, 10] of FP32."),
    ({"shape": []}, "Input 'x' has shape []; expected [-1, 10]."),
]


@pytest.mark.parametrize(("changed", "says"), WRONG)
def test_a_wrong_input_is_named(yard, channel, changed, says):
    request = message(rows(1))
    tensor = request.inputs[0]
    tensor.CopyFrom(
        service_pb2.ModelInferRequest.InferInputTensor(**{"name": "x", "datatype": "FP32", "shape": [1, 10], **changed})
    )
    code, details = refused(channel, "ModelInfer", request.SerializeToString(), yard.key)
    assert (code, says in details) == (grpc.StatusCode.INVALID_ARGUMENT, True), details


def test_other_wrong_requests_say_what_is_wrong(yard, channel):
    x = rows(1)
    twice = message(x)
    twice.inputs.add(name="x", datatype="FP32", shape=x.shape)
    twice.raw_input_contents.append(x.tobytes())
    both = message(x)
    both.inputs[0].contents.fp32_contents.append(1)
    asked = message(x)
    asked.outputs.add(name="nosuch")
    many = message(x)
    many.raw_input_contents.append(b"")
    mixed = message(x)
    del mixed.raw_input_contents[:]
    mixed.inputs[0].contents.int_contents.append(1)
    for request, code, says in (
        (twice, "INVALID_ARGUMENT", "Input 'x' is given twice"),
        (both, "INVALID_ARGUMENT", "has both contents and raw_input_contents"),
        (asked, "INVALID_ARGUMENT", "Output 'nosuch' is not known; expected one of 'y'"),
        (many, "INVALID_ARGUMENT", "2 raw_input_contents for 1 inputs"),
        (mixed, "INVALID_ARGUMENT", "Input 'x' is FP32, but has int_contents; expected fp32_contents."),
        (service_pb2.ModelInferRequest(model_name="simple"), "INVALID_ARGUMENT", "Input missing: expected also 'x'"),
        (message(x, model=""), "INVALID_ARGUMENT", "no model_name"),
        (message(x, model="nosuch"), "NOT_FOUND", "No deployment 'nosuch'"),
        (message(x, model="a/b\0?%00"), "NOT_FOUND", "No deployment 'a/b"),
        (message(x, model_version="9"), "NOT_FOUND", "serves no version '9'"),
    ):
        got, details = refused(channel, "ModelInfer", request.SerializeToString(), yard.key)
        assert (got.name, says in details) == (code, True), details
    assert refused(channel, "ModelMetadata", message(x, model="nosuch").SerializeToString(), yard.key)[0].name == "NOT_FOUND"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60), st.integers(0, 200))
def test_malformed_bytes_are_the_callers_fault(yard, channel, noise, at):
    whole = message(rows(1)).SerializeToString()
    for body in (noise, whole[:at] + noise + whole[at + len(noise) :], whole[:at]):
        answer = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(body, metadata=[("x-api-key", yard.key)], timeout=15)
        assert answer.code().name in ("OK", "INVALID_ARGUMENT", "NOT_FOUND"), answer.details()


def memory(yard):
    status = Path(f"/proc/{yard.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def test_a_body_beyond_the_limit_and_one_that_would_grow_beyond_it(yard, channel):
    whole = message(rows(LIMIT // 45)).SerializeToString()
    assert LIMIT * 0.8 < len(whole) < LIMIT
    assert len(call(channel, "ModelInfer", whole, yard.key)) > 100_000
    code, details = refused(channel, "ModelInfer", whole + bytes(LIMIT - len(whole) + 1), yard.key)
    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED, details
    before = memory(yard)
    bomb = b"\x1a\x80\x84\xaf\x5f" + bytes(200_000_000)
    code, details = refused(channel, "ModelInfer", bomb, yard.key, compression=grpc.Compression.Gzip)
    assert code == grpc.StatusCode.UNIMPLEMENTED, details
    assert memory(yard) - before < 50_000_000
    assert call(channel, "ServerLive") == b"\x08\x01"


def test_a_body_without_a_key_is_not_read(yard, channel):
    before = memory(yard)
    bodies = [bytes(LIMIT - 1000)] * 30
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda body: refused(channel, "ModelInfer", body)[0], bodies))
    assert set(answers) == {grpc.StatusCode.UNAUTHENTICATED}
    assert memory(yard) - before < 20_000_000


# Time


def test_a_deadline_travels_and_a_cancelled_call_is_cancelled(yard, channel, auth):
    before = yard.settled()
    yard.replicas["one"].send_signal(19)  # SIGSTOP: it takes calls and answers none
    try:
        whole = message(rows(1)).SerializeToString()
        code, _ = refused(channel, "ModelInfer", whole, yard.key, timeout=0.5)
        assert code == grpc.StatusCode.DEADLINE_EXCEEDED
        future = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(whole, metadata=list(auth.items()), timeout=15)
        time.sleep(0.3)
        future.cancel()
        time.sleep(0.5)
    finally:
        yard.replicas["one"].send_signal(18)  # SIGCONT
    after = until(lambda: (now := yard.settled())["calls"] == before["calls"] + 2 and now)
    assert after["units"] == before["units"]  # neither was computed
    assert after["errors"] - before["errors"] == 2
    assert call(channel, "ModelInfer", whole, yard.key)


def test_a_taken_port_is_named_at_the_start(tmp_path):
    for _ in range(20):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            argv = ["up", "--json", "--grpc", "--data", str(tmp_path / "yard"), "--port", str(port - 1)]
            done = subprocess.run([sys.executable, "-m", "modelyard", *argv], capture_output=True, text=True, timeout=60)
            assert done.returncode != 0
            if f"Port {port - 1} of" in done.stdout:
                continue  # chance took that one too
            assert f"Port {port} of 127.0.0.1, for gRPC, cannot be had" in done.stdout
            return
    raise AssertionError("no two free ports")
