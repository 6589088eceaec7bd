"""`plan` decides from values: these tests run no process."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.serving.planning import (
    Drain,
    Forget,
    MarkLost,
    MarkReady,
    Observed,
    Patience,
    Replace,
    Settle,
    Start,
    Stop,
    Wanted,
    plan,
)
from modelyard.serving.types import DeploymentState, Health, ReplicaState

AT = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = Patience(timedelta(seconds=60), timedelta(seconds=20))
READY = Health(ReplicaState.ready, {"inputs": []})


def wanted(generation=1, replicas=1, state=DeploymentState.pending, retry_at=None, settled=False):
    return [Wanted(generation, replicas, state, retry_at, settled)]


def replica(
    token="a",
    generation=1,
    state=ReplicaState.ready,
    *,
    age=100.0,
    since=100.0,
    alive=True,
    code=None,
    health=None,
    pid=7,
    **more,
):
    started, changed = AT - timedelta(seconds=age), AT - timedelta(seconds=since)
    return Observed(token, generation, state, started, changed, pid, code, alive, health, **more)


def test_until_a_release_is_whole_no_more_load_at_a_time_than_are_ready():
    ready, loading = [replica(token) for token in "abcd"], replica("z", state=ReplicaState.starting, age=1)
    for here, starts in (
        ([], [Start(1, 1)]),
        ([loading], []),
        (ready[:1], [Start(1, 1)]),
        ([*ready[:1], loading], []),
        (ready[:3], [Start(1, 3)]),
        ([*ready[:3], loading], [Start(1, 2)]),
        (ready, [Start(1, 4)]),
    ):
        assert plan(wanted(replicas=8), here, AT, PATIENCE) == starts, here
    assert plan(wanted(replicas=8, settled=True), [loading], AT, PATIENCE) == [Start(1, 7)]


def test_nothing_to_do_when_actual_equals_desired():
    assert plan(wanted(state=DeploymentState.ready, settled=True), [replica()], AT, PATIENCE) == []


def test_a_loaded_replica_becomes_ready():
    starting = replica(state=ReplicaState.starting, age=1, health=READY)
    assert plan(wanted(), [starting], AT, PATIENCE) == [MarkReady("a", READY, 7)]


def test_a_replica_that_cannot_load_is_lost_with_its_own_error():
    error = Invalid("no such layer")
    starting = replica(state=ReplicaState.starting, age=1, health=Health(ReplicaState.starting, {}, error))
    assert plan(wanted(state=DeploymentState.failed), [starting], AT, PATIENCE) == [MarkLost("a", error)]


def test_a_replica_that_never_gets_ready_is_given_up():
    actions = plan(wanted(), [replica(state=ReplicaState.starting, age=61)], AT, PATIENCE)
    assert [type(action) for action in actions] == [MarkLost]


def test_a_dead_replica_is_lost_and_what_follows_is_decided_when_that_is_written_down():
    [lost] = plan(wanted(), [replica(alive=False, code=-9, served=True)], AT, PATIENCE)
    assert "killed" in lost.error.message
    assert lost.served
    assert plan(wanted(), [], AT, PATIENCE) == [Start(1, 1)]


def test_a_replica_that_went_with_its_supervisor_is_replaced_at_once_and_without_blame():
    assert plan(wanted(), [replica(alive=False, pid=None)], AT, PATIENCE) == [Replace("a"), Start(1, 1)]


def test_no_start_before_the_backoff_is_over_nor_after_giving_up():
    assert plan(wanted(retry_at=AT + timedelta(seconds=1)), [], AT, PATIENCE) == []
    assert plan(wanted(state=DeploymentState.failed), [], AT, PATIENCE) == []


def test_the_old_generation_serves_until_the_new_one_is_ready():
    old, new = replica("old", 1), replica("new", 2, ReplicaState.starting, age=1)
    asked = [*wanted(generation=2), *wanted(1, settled=True)]
    assert plan(asked, [old, new], AT, PATIENCE) == []
    assert plan(asked, [old, replica("new", 2)], AT, PATIENCE) == [Settle(2)]
    assert plan(wanted(generation=2, settled=True), [old, replica("new", 2)], AT, PATIENCE) == [Drain("old")]


@pytest.mark.parametrize("state", [ReplicaState.starting, ReplicaState.ready])
def test_what_no_call_goes_to_leaves_though_nothing_answers(state):
    forgotten = replica("old", 1, state, age=1)
    assert plan(wanted(generation=2, retry_at=AT + timedelta(seconds=1)), [forgotten], AT, PATIENCE) == [Drain("old")]


def test_what_is_whole_waits_for_nothing_any_more():
    paused = wanted(state=DeploymentState.ready, retry_at=AT + timedelta(seconds=1), settled=True)
    assert plan(paused, [replica()], AT, PATIENCE) == [Settle(1)]
    assert plan(paused, [replica(state=ReplicaState.starting, age=1)], AT, PATIENCE) == []


def test_draining_waits_for_the_gateways_then_stops_then_forgets():
    draining = ReplicaState.draining
    assert plan([], [replica(state=draining, since=0.5)], AT, PATIENCE) == []
    assert plan([], [replica(state=draining, since=1.5)], AT, PATIENCE) == [Stop("a")]
    for since, asked, stops in ((0.5, 0.05, True), (0.5, 0.2, False), (0.3, 0.0, False), (0.9, None, False), (1.5, None, True)):
        left = None if asked is None else timedelta(seconds=asked)
        found = plan([], [replica(state=draining, since=since, left=left)], AT, PATIENCE)
        assert found == ([Stop("a")] if stops else []), (since, asked)
    assert plan([], [replica(state=draining, alive=False, code=0)], AT, PATIENCE) == [Forget("a")]


def test_an_undeployed_replica_is_drained():
    assert plan([], [replica()], AT, PATIENCE) == [Drain("a")]


def test_fewer_wanted_drains_the_youngest():
    here = [replica("old", age=90), replica("young", age=10)]
    assert plan(wanted(settled=True), here, AT, PATIENCE) == [Drain("young")]


observations = st.builds(
    replica,
    token=st.uuids().map(str),
    generation=st.integers(1, 3),
    state=st.sampled_from(list(ReplicaState)),
    age=st.floats(0, 200),
    since=st.floats(0, 200),
    alive=st.booleans(),
    code=st.sampled_from([None, 0, 1, -9]),
    health=st.sampled_from([None, READY]),
    pid=st.sampled_from([None, 7]),
    swollen=st.booleans(),
    stuck=st.sampled_from([timedelta(), timedelta(seconds=21)]),
)


asked = st.lists(
    st.builds(
        Wanted,
        st.integers(1, 3),
        st.integers(1, 4),
        st.sampled_from([DeploymentState.pending, DeploymentState.ready, DeploymentState.failed]),
        st.sampled_from([None, AT, AT + timedelta(seconds=1)]),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda release: release.generation,
)


@given(st.lists(observations, max_size=8, unique_by=lambda o: o.token), asked)
def test_plan_never_leaves_a_served_deployment_without_a_ready_replica(here, releases):
    actions = plan(releases, here, AT, PATIENCE)
    drained = {action.token for action in actions if isinstance(action, Drain)}
    lost = {action.token for action in actions if isinstance(action, MarkLost | Replace)}
    known = {release.generation for release in releases}
    ready = {o.token for o in here if o.state == ReplicaState.ready and o.generation in known} - lost
    assert not ready or ready - drained
    for release in releases:
        current = [o for o in here if o.generation == release.generation and o.token not in lost and not o.swollen]
        fresh = [o for o in current if o.state != ReplicaState.draining]
        starts = sum(a.count for a in actions if isinstance(a, Start) and a.generation == release.generation)
        assert starts <= max(0, release.replicas - len(fresh))
        loading = sum(o.state != ReplicaState.ready for o in fresh)
        assert release.settled or not starts or loading + starts <= max(1, len(fresh) - loading)


def test_a_replica_that_was_ended_for_what_it_did_is_told_of_with_that():
    for reason, says in (
        ("left more than 9 files in its folder", "The replica left more than 9 files in its folder and was ended."),
        ("", "The replica was killed by signal 9; its log may say why."),
    ):
        [lost] = plan(wanted(replicas=1), [replica("a", alive=False, code=-9, reason=reason)], AT, PATIENCE)
        assert lost.error.message == says


def test_until_the_new_release_is_whole_the_one_before_is_kept_whole_too():
    asked = [*wanted(2, 2), *wanted(1, 2, settled=True)]
    here = [replica("new", 2), replica("old", 1), replica("dead", 1, alive=False, code=-9)]
    [lost, start] = plan(asked, here, AT, PATIENCE)
    assert (lost.token, start) == ("dead", Start(2, 1))
    assert plan(asked, here[:2], AT, PATIENCE) == [Start(2, 1), Start(1, 1)]
    whole = plan([*wanted(2, 2)], [replica("a", 2), replica("b", 2), replica("old", 1)], AT, PATIENCE)
    assert whole == [Settle(2), Drain("old")]


def test_a_release_on_trial_runs_beside_the_stable_one():
    asked = [*wanted(1, 1, DeploymentState.ready, settled=True), *wanted(2, 1)]
    assert plan(asked, [replica("a", 1)], AT, PATIENCE) == [Start(2, 1)]
    assert plan(asked, [replica("a", 1), replica("b", 2)], AT, PATIENCE) == [Settle(2)]
    assert plan(asked[:1], [replica("a", 1), replica("b", 2)], AT, PATIENCE) == [Drain("b")]


def test_what_is_to_sleep_is_drained():
    assert plan(wanted(replicas=0, settled=True), [replica("a"), replica("b", 0)], AT, PATIENCE) == [Drain("a"), Drain("b")]


def test_a_replica_that_computes_nothing_is_lost():
    stuck = replica(stuck=timedelta(seconds=21), health=READY)
    [lost] = plan(wanted(settled=True), [stuck], AT, PATIENCE)
    assert "computed nothing for 21 s" in lost.error.message
    assert plan(wanted(settled=True), [replica(stuck=timedelta(seconds=19), health=READY)], AT, PATIENCE) == []


def test_a_replica_that_does_not_answer_is_lost_while_its_calls_have_time_left():
    silent = replica(stuck=timedelta(seconds=11), health=None)
    assert [type(action) for action in plan(wanted(settled=True), [silent], AT, PATIENCE)] == [MarkLost]
    assert plan(wanted(settled=True), [replica(stuck=timedelta(seconds=9), health=None)], AT, PATIENCE) == []


def test_a_swollen_replica_serves_until_a_fresh_one_does():
    swollen = replica("big", swollen=True)
    assert plan(wanted(settled=True), [swollen], AT, PATIENCE) == [Start(1, 1)]
    fresh = replica("new", state=ReplicaState.starting, age=1)
    assert plan(wanted(settled=True), [swollen, fresh], AT, PATIENCE) == []
    assert plan(wanted(settled=True), [swollen, replica("new", age=1)], AT, PATIENCE) == [Drain("big")]
