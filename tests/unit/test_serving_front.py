"""The gateway's own routes: who may see them, what they say, and that all else is relayed."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from serving_gateway_fakes import KEY, Bench, FakeFollower, record, route

from modelyard import __version__
from modelyard.serving.follower import State
from modelyard.serving.front import Front
from modelyard.serving.gateway import SMALL
from modelyard.serving.types import DeploymentState
from modelyard.tenancy.types import Scope

ROUTES = [
    route(),
    route("slow", state=DeploymentState.pending, endpoints=()),
    route("bad", state=DeploymentState.failed, endpoints=(), error="no file"),
    route("hidden", project="rival"),
]


async def relay(scope, receive, send):
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["raw_path"]})


def ask(bench, method, path, key=KEY, control=True, told=None, **options):
    async def run():
        transport = httpx.ASGITransport(app=Front(bench.gateway, relay, lambda: control, told))
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            return await client.request(method, path, headers=headers, **options)

    return asyncio.run(run())


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path, routes=ROUTES)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"])
def test_health_is_open(bench, path):
    assert ask(bench, "GET", path, key=None).status_code == 200
    assert ask(bench, "HEAD", path, key=None).content == b""
    assert ask(bench, "POST", path, key=None).status_code == 405


def test_readiness_ends_with_the_sight_of_the_database(bench):
    bench.gateway.follow(FakeFollower(age=1e9))  # type: ignore[arg-type]
    assert ask(bench, "GET", "/healthz", key=None).status_code == 200
    for path in ("/readyz", "/v2/health/ready"):
        answer = ask(bench, "GET", path, key=None)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("control", "age", "seen"), [(True, 0.1, ("ok", "ok")), (False, 0.1, ("gone", "ok")), (True, 5.0, ("ok", "gone"))]
)
def test_readiness_tells_what_is_gone(bench, control, age, seen):
    bench.gateway.follow(FakeFollower(age=age))  # type: ignore[arg-type]
    answer = ask(bench, "GET", "/readyz", key=None, control=control)
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "control": seen[0], "database": seen[1]}


GATED = ["/v2", "/v2/models/digits", "/v2/models/digits/ready", "/v2/models/digits/versions/3", "/v2/whatever", "/metrics"]


@pytest.mark.parametrize("path", GATED)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_everything_else_needs_a_key(bench, path, method):
    answer = ask(bench, method, path, key=None)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert ask(bench, method, path, key="my_k1_wrong").status_code == 401


def test_the_server(bench):
    assert ask(bench, "GET", "/v2").json() == {
        "name": "modelyard",
        "version": __version__,
        "extensions": ["binary_tensor_data"],
    }


@pytest.mark.parametrize("path", ["/v2/models/digits", "/v2/models/digits/versions/3"])
def test_a_model(bench, path):
    assert ask(bench, "GET", path).json() == {
        "name": "digits",
        "versions": ["3"],
        "platform": "onnx",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}],
        "outputs": [],
    }


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v2/models/digits/ready", 200, ""),
        ("/v2/models/digits/versions/3/ready", 200, ""),
        ("/v2/models/digits/versions/4/ready", 404, "serves no version '4'"),
        ("/v2/models/slow/ready", 503, "not ready yet"),
        ("/v2/models/bad/ready", 503, "no file"),
        ("/v2/models/nosuch", 404, "No deployment 'nosuch'"),
        ("/v2/models/hidden", 404, "No deployment 'hidden'"),
        ("/v2/models/digits/stats", 404, "There is nothing at /v2/models/digits/stats."),
        ("/v2/", 404, "There is nothing at"),
    ],
)
def test_paths_of_models(bench, path, status, says):
    answer = ask(bench, "GET", path)
    assert answer.status_code == status
    assert says in answer.json().get("error", "")
    assert "rival" not in answer.text


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/models/digits/infer"), ("POST", "/v2/models/digits"), ("GET", "/v2/repository/index")]
)
def test_other_methods(bench, method, path):
    assert ask(bench, method, path).status_code == 405


def test_who_is_ready_says_by_which_model(bench):
    assert ask(bench, "GET", "/v2/models/digits/ready").json() == {"name": "digits", "ready": True, "model": "cnn@3"}


def test_the_index_lists_ones_own(bench):
    assert ask(bench, "POST", "/v2/repository/index").json() == [
        {"name": "bad", "version": "3", "state": "UNAVAILABLE", "reason": "no file"},
        {"name": "digits", "version": "3", "state": "READY", "reason": ""},
        {"name": "slow", "version": "3", "state": "LOADING", "reason": ""},
    ]


def test_metrics_show_ones_own_project(tmp_path):
    bench = Bench(tmp_path, keys=[record(), record("k2", "default", Scope.admin)], routes=ROUTES)
    bench.gateway.metrics.cell("team", "digits", "3").count(200, 0.01)
    bench.gateway.metrics.cell("rival", "hidden", "1").count(200, 0.01)
    bench.gateway.metrics.refuse(401)
    own = ask(bench, "GET", "/metrics")
    assert own.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'modelyard_calls_total{code="200",model="digits",project="team",version="3"} 1.0' in own.text
    assert 'modelyard_queue_depth{model="digits",project="team",version="3"} 0.0' in own.text
    assert 'modelyard_refused_total{code="401"} 1.0' in own.text
    assert "rival" not in own.text
    assert "rival" in ask(bench, "GET", "/metrics", key=KEY.replace("k1", "k2")).text


def test_control_is_asked_for_its_metrics_with_the_callers_key_and_not_waited_for_in_vain(bench):
    asked = []

    async def told(credentials):
        asked.append(credentials)
        return b'modelyard_jobs_ended_total{state="failed"} 2.0\n'

    async def gone(_):
        return None

    text = ask(bench, "GET", "/metrics", told=told).text
    assert 'modelyard_jobs_ended_total{state="failed"} 2.0' in text
    assert "modelyard_control_up 1.0" in text
    assert asked == [((b"authorization", f"Bearer {KEY}".encode()),)]
    text = ask(bench, "GET", "/metrics", told=gone).text
    assert "modelyard_control_up 0.0" in text
    assert "modelyard_queue_depth" in text
    assert ask(bench, "GET", "/metrics", key="my_k1_wrong", told=told).status_code == 401
    assert len(asked) == 1


def test_a_key_and_a_deployment_made_a_moment_ago(tmp_path):
    async def run():
        bench = Bench(tmp_path, keys=[], routes=[])
        follower = FakeFollower(lambda: bench.gateway.apply(State(2, [record()], [route()])))
        bench.gateway.follow(follower)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app=Front(bench.gateway, relay))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            asked = asyncio.ensure_future(client.get("/v2/models/digits", headers={"x-api-key": KEY}))
            for _ in range(20):
                await asyncio.sleep(0)
            follower.look()
            assert (await asked).status_code == 200

    asyncio.run(run())


def test_a_key_is_not_called_wrong_while_the_database_is_gone(tmp_path):
    bench = Bench(tmp_path, keys=[])
    bench.gateway.follow(FakeFollower(age=5.0))  # type: ignore[arg-type]
    answer = ask(bench, "GET", "/v2/models/digits")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_readiness_ends_a_grace_after_control_did(bench):
    bench.gateway.heed(lambda: 1e9)
    assert ask(bench, "GET", "/healthz", key=None).status_code == 200
    answer = ask(bench, "GET", "/readyz", key=None, control=False)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "control process is gone" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "path", ["/", "/api/jobs", "/v1/models", "/v2x", "/healthz/", "/Healthz", "//v2/health/live", "/metrics/x"]
)
def test_all_else_is_relayed_as_it_came(bench, path):
    answer = ask(bench, "GET", httpx.URL(scheme="http", host="gateway", raw_path=path.encode()), key=None)
    assert answer.status_code == 299
    assert answer.text == path


class Chunked(httpx.AsyncByteStream):
    async def __aiter__(self):
        yield b"x"


@pytest.mark.parametrize(
    ("key", "content", "status"),
    [
        (None, b"x" * SMALL, 299),  # control refuses it, once it is whole
        (None, b"x" * (SMALL + 1), 401),
        (None, Chunked(), 401),
        ("my_k1_wrong", b"x" * (SMALL + 1), 401),
        (KEY, b"x" * (SMALL + 1), 299),
        (KEY, Chunked(), 299),
    ],
)
def test_a_long_body_goes_to_control_only_with_a_key_that_is_known(bench, key, content, status):
    answer = ask(bench, "PUT", "/api/blobs/x", key=key, content=content)
    assert answer.status_code == status
    assert status == 299 or answer.json()["error"]["code"] == "invalid_api_key"
