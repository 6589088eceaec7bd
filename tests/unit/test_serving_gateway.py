"""Access → grant → route → settle: who may call what, and what is counted for it."""

from __future__ import annotations

import time

import pytest
from serving_gateway_fakes import HERE, KEY, SECRET, Bench, FakeFollower, record, route

from modelyard.errors import Forbidden, ModelyardError, NotFound, Unauthorized, Unavailable
from modelyard.serving.follower import State
from modelyard.serving.frames import Usage
from modelyard.serving.metrics import exposition
from modelyard.serving.types import DeploymentState
from modelyard.tenancy.types import Scope

URL = b"/v2/models/digits/infer"
GOOD = ((b"authorization", b"Bearer " + KEY.encode()),)
NOW = time.time()


def test_a_call_is_admitted(tmp_path):
    admission = Bench(tmp_path).gateway.admit(URL, GOOD, NOW)
    assert (admission.principal.project, admission.principal.key) == ("team", "k1")
    assert admission.route.model == "cnn"
    assert admission.envelope.verb == "infer"


@pytest.mark.parametrize(
    "url", [b"/v2/models/digits/infer?x=1", b"http://evil/v2/models/digits/infer", b"/v2/models/digits/versions/3/infer"]
)
def test_other_forms_of_the_same_path(tmp_path, url):
    assert Bench(tmp_path).gateway.admit(url, GOOD, NOW).route.deployment == "digits"


@pytest.mark.parametrize(
    "url", [b"/v2/models/digits", b"/api/jobs", b"/v1/models", b"*", b"//v2/models/digits/infer", b"http://["]
)
def test_what_no_door_answers(tmp_path, url):
    assert Bench(tmp_path).gateway.admit(url, (), NOW) is None


@pytest.mark.parametrize(
    "credentials",
    [
        (),
        ((b"authorization", b"Bearer my_k1_wrong"),),
        ((b"authorization", b"Bearer my_k9_" + SECRET.encode()),),
        ((b"authorization", b"Basic abc"),),
        ((b"authorization", b"Bearer ' OR 1=1 --"),),
        (*GOOD, (b"authorization", b"Bearer my_k2_x")),
        (*GOOD, (b"x-api-key", b"other")),
        ((b"authorization", b"\xff\xfe"),),
    ],
)
def test_no_good_key(tmp_path, credentials):
    with pytest.raises(Unauthorized):
        Bench(tmp_path).gateway.admit(URL, credentials, NOW)


def test_the_other_header_will_do(tmp_path):
    assert Bench(tmp_path).gateway.admit(URL, ((b"x-api-key", KEY.encode()),), NOW) is not None


def test_revoked_and_expired_keys(tmp_path):
    for changed in ({"revoked": True}, {"expires": NOW - 1}):
        with pytest.raises(Unauthorized):
            Bench(tmp_path, keys=[record(**changed)]).gateway.admit(URL, GOOD, NOW)


def test_a_revoked_key_is_refused_as_soon_as_it_is_known(tmp_path):
    bench = Bench(tmp_path)
    assert bench.gateway.admit(URL, GOOD, NOW)
    bench.gateway.apply(State(2, [record(revoked=True)], [route()]))
    with pytest.raises(Unauthorized, match="revoked"):
        bench.gateway.admit(URL, GOOD, NOW)


def test_an_admission_is_decided_anew_after_a_while(tmp_path):
    bench = Bench(tmp_path)
    first = bench.gateway.admit(URL, GOOD, NOW)
    assert bench.gateway.admit(URL, GOOD, NOW + 0.1) is first
    assert bench.gateway.admit(URL, GOOD, NOW + 0.6) is not first


def test_the_deployment_of_another_project_does_not_exist(tmp_path):
    bench = Bench(tmp_path, routes=[route(), route("secret", project="rival")])
    with pytest.raises(NotFound) as caught:
        bench.gateway.admit(b"/v2/models/secret/infer", GOOD, NOW)
    assert "rival" not in caught.value.message
    assert caught.value.message == "No deployment 'secret'. There are: 'digits'."


def test_the_nearest_name_is_told(tmp_path):
    with pytest.raises(NotFound, match="Did you mean 'digits'"):
        Bench(tmp_path).gateway.admit(b"/v2/models/digts/infer", GOOD, NOW)


def test_an_unknown_version(tmp_path):
    with pytest.raises(NotFound, match="serves no version '4'; it serves '3'"):
        Bench(tmp_path).gateway.admit(b"/v2/models/digits/versions/4/infer", GOOD, NOW)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"state": DeploymentState.pending}, "not ready yet"),
        ({"endpoints": ()}, "not ready yet"),
        ({"state": DeploymentState.failed, "error": "no file"}, "has failed: no file"),
    ],
)
def test_a_deployment_that_is_not_ready(tmp_path, fields, says):
    with pytest.raises(Unavailable, match=says):
        Bench(tmp_path, routes=[route(**fields)]).gateway.admit(URL, GOOD, NOW)


def test_a_scope_that_does_not_reach(tmp_path):
    gateway = Bench(tmp_path).gateway
    with pytest.raises(Forbidden):
        gateway.principal(GOOD, Scope.admin)


def test_without_the_database_it_serves_for_the_grace_and_then_closes(tmp_path):
    bench = Bench(tmp_path, grace=10.0)
    follower = FakeFollower(age=9.0)
    bench.gateway.follow(follower)  # type: ignore[arg-type]
    assert bench.gateway.admit(URL, GOOD, NOW)
    follower.age = 11.0
    with pytest.raises(Unavailable, match="cannot see the database"):
        bench.gateway.admit(URL, GOOD, NOW + 1)


def test_a_database_that_is_gone_is_not_waited_for(tmp_path):
    bench, looked = Bench(tmp_path), []
    follower = FakeFollower(age=0.1)
    bench.gateway.follow(follower)  # type: ignore[arg-type]
    bench.gateway.refresh(looked.append)
    assert (len(follower.asked), looked) == (1, [])
    follower.age = 5.0
    bench.gateway.refresh(looked.append)
    assert (len(follower.asked), looked) == (1, [False])


def test_without_control_it_serves_for_the_grace_and_then_closes(tmp_path):
    bench, age = Bench(tmp_path, grace=10.0), [9.0]
    bench.gateway.heed(lambda: age[0])
    assert bench.gateway.admit(URL, GOOD, NOW)
    age[0] = 11.0
    with pytest.raises(Unavailable, match="control process is gone"):
        bench.gateway.admit(URL, GOOD, NOW + 1)
    age[0] = 0.1
    assert bench.gateway.admit(URL, GOOD, NOW + 1)


STRANGE = ((b"x-api-key", b"my_k9_" + b"s" * 48),)
WRONG = ((b"x-api-key", b"my_k1_" + b"t" * 48),)
NO_KEY = ((b"x-api-key", b"nonsense"),)


@pytest.mark.parametrize(
    ("url", "credentials", "unseen"),
    [
        (URL, STRANGE, Unavailable),
        (URL, WRONG, Unauthorized),
        (URL, NO_KEY, Unauthorized),
        (URL.replace(b"digits", b"letters"), GOOD, Unavailable),
    ],
)
def test_what_is_not_known_may_be_there_while_the_database_is_not_seen(tmp_path, url, credentials, unseen):
    gateway = Bench(tmp_path).gateway
    with pytest.raises(ModelyardError) as refused:
        gateway.admit(url, credentials, NOW)
    assert gateway.after_look(refused.value, credentials, seen=True) is refused.value
    assert type(gateway.after_look(refused.value, credentials, seen=False)) is unseen


def test_a_call_id_is_the_requests_own_or_fresh(tmp_path):
    gateway = Bench(tmp_path).gateway
    assert gateway.call_id(b"abc-1") == "abc-1"
    for odd in (None, b"", b"a b", b"x" * 129, b"a\x01", b"\xff"):
        assert len(gateway.call_id(odd)) == 24
    assert gateway.call_id(None) != gateway.call_id(None)


def test_calls_are_counted_for_who_made_them(tmp_path):
    bench = Bench(tmp_path)
    admission = bench.gateway.admit(URL, GOOD, NOW)
    bench.gateway.settle(admission, Usage(5, 100), 200, 10, 20, 0.003)
    bench.gateway.settle(admission, Usage(0, 1), 400, 1, 2, 0.001)
    bench.gateway.settle(admission, Usage(2, 3), 0, 0, 0, 0.0, calls=0)
    assert bench.counted() == [(3, 2, 1, 7, 104, 11, 22)]
    text = exposition(bench.gateway.metrics.families("team")).decode()
    assert 'modelyard_calls_total{code="200",model="digits",project="team",version="3"} 1.0' in text
    assert 'modelyard_call_seconds_count{model="digits",project="team",version="3"} 2.0' in text
    assert "team" not in exposition(bench.gateway.metrics.families("rival")).decode()


def test_room_for_bodies_is_bounded(tmp_path):
    gateway = Bench(tmp_path, body_limit=1000).gateway
    for _ in range(8):
        gateway.reserve(1000)
    with pytest.raises(Unavailable, match="large requests"):
        gateway.reserve(1)
    gateway.release(1000)
    gateway.reserve(1000)


def test_admissions_do_not_grow_without_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("modelyard.serving.gateway._MOST_ADMISSIONS", 10)
    gateway = Bench(tmp_path).gateway
    for number in range(50):
        gateway.admit(URL + b"?%d" % number, GOOD, NOW)
    assert len(gateway._admissions) <= 10


def test_a_call_under_way_may_go_on_with_newer_replicas_of_its_own_version_only(tmp_path):
    bench = Bench(tmp_path)
    first = bench.gateway.admit(URL, GOOD, NOW).group
    bench.gateway.apply(State(2, [record()], [route(endpoints=HERE * 2)]))
    second = bench.gateway.admit(URL, GOOD, NOW).group
    bench.gateway.apply(State(3, [record()], [route(version="4")]))
    assert first.newer is second
    assert getattr(second, "newer", None) is None
