"""A real gateway process, real replica processes on a real ONNX graph, a real database; called by raw sockets, httpx and
tritonclient, and killed."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from modelyard.app.migrate import pepper
from modelyard.app.migrate import run as migrate
from modelyard.app.supervise import bind, environment
from modelyard.db import Database, bump, now
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.serving.probe import probe
from modelyard.serving.tables import DeploymentRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import ReplicaState
from modelyard.settings import Settings
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.ledger import usage
from modelyard.tenancy.types import Scope

RNG = np.random.default_rng(0)
W1, B1 = RNG.normal(size=(10, 20)).astype(np.float32), RNG.normal(size=20).astype(np.float32)
W2, B2 = RNG.normal(size=(20, 1)).astype(np.float32), RNG.normal(size=1).astype(np.float32)
BODY_LIMIT = 2_000_000


def expected(x):
    return np.maximum(x @ W1 + B1, 0) @ W2 + B2


def model(folder: Path) -> Path:
    """10 → 20 → 1 with ReLU, as ONNX with its card."""
    folder.mkdir()
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Gemm", ["h", "w2", "b2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "simple",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(array, name) for name, array in (("w1", W1), ("b1", B1), ("w2", W2), ("b2", B2))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "model.onnx")
    tensors = {"inputs": (TensorCard(name="x", datatype="FP32", shape=(-1, 10)),)}
    outputs = (TensorCard(name="y", datatype="FP32", shape=(-1, 1)),)
    ModelCard(task="tabular-regression", engines=("onnx",), files={"onnx": "model.onnx"}, outputs=outputs, **tensors).save(
        folder
    )
    return folder


def until(condition, patience=20.0):
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not come to be")


class Yard:
    """A data folder with a database, replicas and a gateway, each a process of its own."""

    def __init__(self, folder: Path, **settings) -> None:
        self.folder = folder
        self.settings = Settings(**{"data": folder / "yard", "body_limit": BODY_LIMIT, "port": 0, "grace": 3600, **settings})
        migrate(self.settings)
        self.pepper = pepper(self.settings)
        self.db = Database(self.settings.database_url)
        self.model = model(folder / "model")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.replicas: dict[str, subprocess.Popen[bytes]] = {}
        self.sockets = contextlib.ExitStack()
        self.listener = bind(self.settings, self.sockets)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.key = self.create_key(Scope.infer)
        with self.db.begin() as session:
            row = DeploymentRow(
                project="default", name="simple", generation=1, stable=1, options={}, used=now(), created=now(), updated=now()
            )
            session.add(row)
            session.flush()
            session.add(
                ReleaseRow(
                    deployment=row.id, generation=1, model="simple", version=1, artefact="0", engine="onnx",
                    task="tabular-regression", replicas=1, settled=True, state="ready", signature={}, created=now(),
                )
            )  # fmt: skip
            self.deployment = row.id

    def create_key(self, scope: Scope) -> str:
        with self.db.begin() as session:
            return tenancy.create_key(session, "default", scope, self.pepper).key

    def revoke(self, key: str) -> None:
        with self.db.begin() as session:
            tenancy.revoke_key(session, "default", key.split("_")[1])

    def start(self, *argv: str, **options) -> subprocess.Popen[bytes]:
        log = (self.folder / "log.txt").open("ab")
        process = subprocess.Popen([sys.executable, "-m", *argv], stdout=log, stderr=log, **options)
        log.close()
        self.processes.append(process)
        return process

    def replica(self, token: str, **settings: int) -> subprocess.Popen[bytes]:
        """Start a replica, wait until it is ready, and route to it."""
        address = self.settings.run / token / "replica.sock"
        spec = {"token": token, "engine": "onnx", "folder": str(self.model), "socket": str(address), "settings": settings}
        process = self.start("modelyard.serving.replica", "--spec", json.dumps(spec))
        health = until(lambda: (h := probe(str(address))) and h.state == ReplicaState.ready and h)
        self.replicas[token] = process
        with self.db.begin() as session:
            session.add(
                ReplicaRow(
                    token=token, project="default", deployment=self.deployment, generation=1, model="simple", version=1,
                    state=ReplicaState.ready, address=str(address), pid=process.pid, started=now(), changed=now(),
                    signature=dict(health.metadata),
                )
            )  # fmt: skip
            bump(session)
        return process

    def forget(self, token: str) -> None:
        with self.db.begin() as session:
            session.delete(session.get(ReplicaRow, token))
            bump(session)

    def gateway(self) -> subprocess.Popen[bytes]:
        descriptor = self.listener.fileno()
        argv = ("modelyard.app.process", "gateway", str(self.settings.data), str(descriptor))
        process = self.start(*argv, pass_fds=[descriptor], env=environment(self.settings))
        until(lambda: self.ready() and process.poll() is None)
        return process

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def used(self) -> dict[str, int]:
        with self.db.read() as session:
            rows = usage(session, "default", group_by=["subject"])
        return rows[0] if rows else {"calls": 0, "units": 0, "errors": 0}

    def settled(self, quiet=0.6) -> dict[str, int]:
        """What is booked once no more comes."""
        while True:
            before = self.used()
            time.sleep(quiet)
            if self.used() == before:
                return before

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.sockets.close()
        self.db.close()


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    made = Yard(tmp_path_factory.mktemp("dataplane"))
    try:
        for token in ("one", "two"):
            made.replica(token)
        made.process = made.gateway()
        yield made
    finally:
        made.close()


@pytest.fixture
def client(yard):
    with httpx.Client(base_url=yard.url, headers={"Authorization": f"Bearer {yard.key}"}, timeout=30) as client:
        yield client


INFER = "/v2/models/simple/infer"


def request_of(x):
    return {"inputs": [{"name": "x", "shape": list(x.shape), "datatype": "FP32", "data": x.ravel().tolist()}]}


def answer_of(response):
    [output] = response.json()["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def rows(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 10)).astype(np.float32)


def raw(yard, *, key=None, path=INFER, more=b""):
    x = rows(1)
    body = json.dumps(request_of(x)).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key or yard.key}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + more + b"\r\n" + body


class Wire:
    """A raw connection that reads whole answers."""

    def __init__(self, yard):
        self.socket = socket.create_connection(("127.0.0.1", yard.port), timeout=20)
        self.file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def answer(self):
        status = int(self.file.readline().split(b" ")[1])
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return status, headers, self.file.read(int(headers.get("content-length", 0)))


# Calls


@pytest.mark.parametrize("count", [1, 3, 500])
def test_answers_are_the_models(client, count):
    x = rows(count)
    response = client.post(INFER, json=request_of(x))
    assert response.status_code == 200
    np.testing.assert_allclose(answer_of(response), expected(x), rtol=1e-5, atol=1e-5)
    assert response.json()["model_name"] == "simple"
    assert response.json()["model_version"] == "1"


def test_tritonclient_unmodified(yard):
    with triton.InferenceServerClient(f"127.0.0.1:{yard.port}") as client:
        headers = {"Authorization": f"Bearer {yard.key}"}
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple", headers=headers)
        assert client.get_server_metadata(headers=headers)["name"] == "modelyard"
        assert client.get_model_metadata("simple", headers=headers)["inputs"][0]["shape"] == [-1, 10]
        assert client.get_model_repository_index(headers=headers)[0]["state"] == "READY"
        x = rows(7)
        for binary_in in (True, False):
            for asked in (
                None,
                [triton.InferRequestedOutput("y", binary_data=True)],
                [triton.InferRequestedOutput("y", binary_data=False)],
            ):
                given = triton.InferInput("x", list(x.shape), "FP32")
                given.set_data_from_numpy(x, binary_data=binary_in)
                fresh = dict(headers)  # tritonclient writes into the headers it is given
                result = client.infer("simple", [given], outputs=asked, headers=fresh, request_id="mine", model_version="1")
                np.testing.assert_allclose(result.as_numpy("y"), expected(x), rtol=1e-5, atol=1e-5)
                assert result.get_response()["id"] == "mine"
        with pytest.raises(InferenceServerException, match="No deployment 'nosuch'"):
            client.infer("nosuch", [given], headers=dict(headers))
        with pytest.raises(InferenceServerException, match="serves no version '9'"):
            client.infer("simple", [given], headers=dict(headers), model_version="9")


def test_kserve_v1(yard, client):
    x = rows(5)
    before = yard.settled()
    for path in ("/v1/models/simple:predict", "/v1/models/simple%3Apredict", "/v1/models/s%69mple:predict"):
        response = client.post(path, json={"instances": x.tolist()})
        assert response.status_code == 200
        np.testing.assert_allclose(response.json()["predictions"], expected(x), rtol=1e-5, atol=1e-5)
    wrong = client.post("/v1/models/simple:predict", json={"instances": [[1, 2]]})
    assert (wrong.status_code, wrong.json()) == (400, {"error": "Input 'x' has shape [1, 2]; expected [-1, 10]."})
    nobody = client.post("/v1/models/nosuch:predict", json={"instances": x.tolist()})
    assert (nobody.status_code, nobody.json()["error"][:22]) == (404, "No deployment 'nosuch'")
    after = until(lambda: (now := yard.settled())["calls"] == before["calls"] + 4 and now)
    assert (after["units"] - before["units"], after["errors"] - before["errors"]) == (15, 1)


def test_gzip_both_ways(yard, client):
    x = rows(400)
    body = json.dumps(request_of(x)).encode()
    packed = gzip.compress(body)
    for _ in range(2):  # the second head is known
        response = client.post(INFER, content=packed, headers={"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
        assert (response.headers["content-encoding"], response.headers["vary"]) == ("gzip", "accept-encoding")
        assert int(response.headers["content-length"]) < len(response.content)
        np.testing.assert_allclose(answer_of(response), expected(x), rtol=1e-5, atol=1e-5)
    plain = client.post(INFER, content=body, headers={"Accept-Encoding": "gzip;q=0.5, identity"})
    assert "content-encoding" not in plain.headers
    with triton.InferenceServerClient(f"127.0.0.1:{yard.port}") as other:
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=True)
        result = other.infer(
            "simple", [given], headers={"Authorization": f"Bearer {yard.key}"},
            request_compression_algorithm="gzip", response_compression_algorithm="gzip",
        )  # fmt: skip
        np.testing.assert_allclose(result.as_numpy("y"), expected(x), rtol=1e-5, atol=1e-5)


def test_an_answer_as_events(yard, client):
    x = rows(3)
    before = yard.settled()
    asks = {"Accept": "text/event-stream", "Accept-Encoding": "gzip, identity;q=0"}
    for _ in range(2):
        with client.stream("POST", INFER, json=request_of(x), headers=asks) as response:
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["transfer-encoding"] == "chunked"
            event, empty, rest = response.read().split(b"\n", 2)
        assert (event[:6], empty, rest) == (b"data: ", b"", b"")
        [output] = json.loads(event[6:])["outputs"]
        np.testing.assert_allclose(np.array(output["data"]).reshape(-1, 1), expected(x), rtol=1e-5, atol=1e-5)
    binary = {**request_of(x), "parameters": {"binary_data_output": True}}
    refused = client.post(INFER, json=binary, headers=asks)
    assert (refused.status_code, refused.json()["error"][:40]) == (400, "A stream of events carries JSON alone: a")
    after = until(lambda: (now := yard.settled())["calls"] == before["calls"] + 3 and now)
    assert (after["units"] - before["units"], after["errors"] - before["errors"]) == (6, 1)


def test_bodies_that_are_not_what_they_say(client):
    for body, name, status, says in (
        (gzip.compress(b"0" * (BODY_LIMIT + 1)), "gzip", 413, f"larger than {BODY_LIMIT} bytes once it is unpacked"),
        (gzip.compress(b"0" * 1000)[:-1], "gzip", 400, "ends too early"),
        (b"{}", "gzip", 400, "not the gzip"),
        (b"{}", "br", 400, "Content-Encoding is 'br'; expected gzip, or none"),
        (gzip.compress(b"hello"), "gzip", 400, "not valid JSON"),
    ):
        response = client.post(INFER, content=body, headers={"Content-Encoding": name})
        assert (response.status_code, says in response.json()["error"]) == (status, True)


def test_a_thousand_calls_at_once_never_cross(yard, client):
    def one(number):
        x = rows(1 + number % 4, seed=number)
        response = client.post(INFER, json=request_of(x), headers={"x-request-id": f"r{number}"})
        assert response.headers["x-request-id"] == f"r{number}"
        np.testing.assert_allclose(answer_of(response), expected(x), rtol=1e-4, atol=1e-4)
        return 1

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(1000))) == 1000


def test_pipelined_calls_and_other_paths_over_one_connection(yard):
    with Wire(yard) as wire:
        wire.send(
            raw(yard) + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + raw(yard) + raw(yard, path="/v2/models/nosuch/infer")
        )
        assert [wire.answer()[0] for _ in range(4)] == [200, 200, 200, 404]


def test_chunks_one_byte_at_a_time(yard):
    body = json.dumps(request_of(rows(1))).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nx-api-key: {yard.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Wire(yard) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in head.encode() + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n":
            wire.send(bytes([byte]))
        assert wire.answer()[0] == 200


def test_expect_continue(yard):
    whole = raw(yard, more=b"Expect: 100-continue\r\n")
    head, body = whole.split(b"\r\n\r\n", 1)
    with Wire(yard) as wire:
        wire.send(head + b"\r\n\r\n")
        assert wire.file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert wire.file.readline() == b"\r\n"
        wire.send(body)
        assert wire.answer()[0] == 200


def test_smuggled_requests_are_refused(yard):
    inner = raw(yard)
    both = raw(yard, more=b"Transfer-Encoding: chunked\r\n").split(b"\r\n\r\n")[0] + b"\r\n\r\n0\r\n\r\n" + inner
    twice = raw(yard, more=b"Content-Length: 0\r\n") + inner
    for attempt in (both, twice):
        with Wire(yard) as wire:
            wire.send(attempt)
            assert wire.answer()[0] == 400
            assert wire.file.read() == b""


# Refusals


def test_wrong_requests_say_what_is_wrong(client):
    assert client.post(INFER, content=b"hello").json()["error"].startswith("The request is not valid JSON")
    assert client.post(INFER, content=b"hello").status_code == 400
    x = rows(1)
    for changed, says in (
        ({"name": "z"}, "Input 'z' is not known; expected: 'x' FP32 [-1, 10]"),
        ({"datatype": "INT8"}, "Input 'x' has datatype 'INT8'; expected FP32"),
        ({"shape": [10, 1]}, "Input 'x' has shape [10, 1]; expected [-1, 10]"),
        ({"data": [1]}, "Input 'x' has 1 elements; expected 10"),
    ):
        response = client.post(INFER, json={"inputs": [{**request_of(x)["inputs"][0], **changed}]})
        assert response.status_code == 400
        assert says in response.json()["error"]


def test_a_body_beyond_the_limit(client):
    response = client.post(INFER, content=b" " * (BODY_LIMIT + 1))
    assert response.status_code == 413
    assert str(BODY_LIMIT) in response.json()["error"]
    assert client.post(INFER, content=(b" " * 1000 for _ in range(BODY_LIMIT // 1000 + 2))).status_code == 413


def test_a_large_body_within_the_limit(client):
    x = rows(BODY_LIMIT // 45)
    given = {"name": "x", "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    response = client.post(INFER, content=header + x.tobytes(), headers={"Inference-Header-Content-Length": str(len(header))})
    assert response.status_code == 200
    length = int(response.headers["inference-header-content-length"])
    np.testing.assert_allclose(
        np.frombuffer(response.content[length:], "<f4").reshape(-1, 1), expected(x), rtol=1e-3, atol=1e-4
    )


def test_keys(yard, client):
    assert httpx.post(yard.url + INFER, json={}).status_code == 401
    fresh = yard.create_key(Scope.infer)
    headers = {"Authorization": f"Bearer {fresh}"}
    assert client.post(INFER, json=request_of(rows(1)), headers=headers).status_code == 200
    yard.revoke(fresh)
    time.sleep(1.0)
    refused = client.post(INFER, json=request_of(rows(1)), headers=headers)
    assert refused.status_code == 401
    assert "revoked" in refused.json()["error"]
    with yard.db.begin() as session:
        expired = tenancy.create_key(session, "default", Scope.infer, yard.pepper, expires=now() + timedelta(seconds=1)).key
    time.sleep(2.2)
    assert client.post(INFER, json=request_of(rows(1)), headers={"Authorization": f"Bearer {expired}"}).status_code == 401


def test_control_is_not_needed_within_the_grace(client):
    assert client.get("/api/whoami").status_code == 503
    assert client.post(INFER, json=request_of(rows(1))).status_code == 200


def test_metrics(client):
    assert client.post(INFER, json=request_of(rows(1))).status_code == 200
    text = client.get("/metrics").text
    assert 'modelyard_calls_total{code="200",model="simple",project="default",version="1"}' in text
    assert "modelyard_call_seconds_bucket" in text
    assert 'modelyard_replicas{model="simple",project="default",state="ready",version="1"} 2.0' in text
    counted = 'modelyard_batches_total{model="simple",project="default",version="1"}'
    until(lambda: counted in (text := client.get("/metrics").text) and f"{counted} 0.0" not in text)


# Ends


class Load:
    """Threads that call until told to stop. `good` answers were 200 and right, `bad` any other; `lost` had no answer."""

    def __init__(self, yard, threads=6):
        self.yard, self.stop = yard, threading.Event()
        self.good = self.lost = 0
        self.bad: list[str] = []
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(threads)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def run(self, seed):
        x = rows(2, seed)
        body, right = json.dumps(request_of(x)), expected(x)
        headers = {"Authorization": f"Bearer {self.yard.key}"}
        while not self.stop.is_set():
            with (
                httpx.Client(base_url=self.yard.url, headers=headers, timeout=20) as client,
                contextlib.suppress(httpx.TransportError),
            ):
                while not self.stop.is_set():
                    self.call(client, body, right)

    def call(self, client, body, right):
        try:
            response = client.post(INFER, content=body)
        except httpx.TransportError:
            with self.lock:
                self.lost += 1
            raise
        fine = response.status_code == 200 and np.allclose(answer_of(response), right, rtol=1e-4, atol=1e-4)
        with self.lock:
            if fine:
                self.good += 1
            else:
                self.bad.append(response.text)


def test_a_killed_replica_costs_no_call(yard):
    with Load(yard) as load:
        until(lambda: load.good > 100)
        yard.replicas["one"].kill()
        before = load.good
        until(lambda: load.good > before + 300)
        yard.forget("one")
        yard.replica("three")
        until(lambda: load.good > before + 600)
    assert not load.bad
    assert not load.lost


def test_a_drained_replica_finishes_and_ends(yard):
    with Load(yard) as load:
        until(lambda: load.good > 100)
        yard.forget("three")
        yard.replicas["three"].send_signal(signal.SIGTERM)
        assert yard.replicas["three"].wait(20) == 0
        before = load.good
        until(lambda: load.good > before + 100)
    assert not load.bad
    assert not load.lost


def test_a_killed_gateway_loses_and_doubles_nothing_in_the_ledger(yard):
    """Answered ≤ booked ≤ asked, over kills at random moments; and nothing more is booked by looking again."""
    chance = random.Random(7)
    until(lambda: not [entry for entry in (yard.settings.run / "meters").iterdir() if entry.suffix == ".damaged"])
    yard.process.send_signal(signal.SIGTERM)
    assert yard.process.wait(30) == 0  # what earlier tests did is settled
    yard.process = yard.gateway()
    before = yard.used()
    with Load(yard) as load:
        for _ in range(4):
            start = load.good
            until(lambda start=start: load.good > start + 50)
            time.sleep(chance.random() * 0.7)
            yard.process.kill()
            yard.process.wait()
            yard.process = yard.gateway()
        start = load.good
        until(lambda: load.good > start + 50)
    assert not load.bad
    yard.process.send_signal(signal.SIGTERM)
    assert yard.process.wait(30) == 0
    assert list((yard.settings.run / "meters").iterdir()) == []
    after = yard.used()
    booked = after["calls"] - before["calls"]
    assert load.good <= booked <= load.good + load.lost
    assert after["units"] - before["units"] == 2 * booked
    assert after["errors"] == before["errors"]
    yard.process = yard.gateway()
    time.sleep(1.0)  # two settlements of the new gateway: only time tells that they book nothing
    assert yard.used() == after


@pytest.mark.parametrize(
    ("module", "banned"),
    [
        ("modelyard.serving.replica", "sqlalchemy fastapi torch obstore"),
        ("modelyard.app.gateway", "torch onnxruntime onnx transformers ray sklearn pyarrow fastapi grpc google.protobuf"),
    ],
)
def test_a_process_loads_only_what_it_needs(module, banned):
    doors = "from modelyard.serving.doors import DOORS; doors = [DOORS.get(name) for name in DOORS]"
    code = f"import sys, {module}; {doors}; print(*({set(banned.split())!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == ""
