"""`plan` decides from values: these tests run no process."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from modelyard.db import Database
from modelyard.errors import Invalid, Unavailable
from modelyard.serving.controller import (
    Controller,
    Drain,
    Forget,
    MarkLost,
    MarkReady,
    Observed,
    Replace,
    Start,
    Stop,
    Wanted,
    backoff,
    plan,
)
from modelyard.serving.types import DeploymentState, Health, ReplicaState
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import UNEXPECTED
from modelyard.testing import InlineExecutor, MemoryStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
PATIENCE = timedelta(seconds=60)
READY = Health(ReplicaState.ready, {"inputs": []})


def wanted(generation=1, replicas=1, state=DeploymentState.pending, retry_at=None):
    return Wanted(generation, replicas, state, retry_at)


def replica(
    token="a", generation=1, state=ReplicaState.ready, *, age=100.0, since=100.0, alive=True, code=None, health=None, pid=7
):
    started, changed = AT - timedelta(seconds=age), AT - timedelta(seconds=since)
    return Observed(token, generation, state, started, changed, pid, code, alive, health)


def test_a_new_deployment_starts_its_replicas():
    assert plan(wanted(replicas=3), [], AT, PATIENCE) == [Start(3)]


def test_nothing_to_do_when_actual_equals_desired():
    assert plan(wanted(state=DeploymentState.ready), [replica()], AT, PATIENCE) == []


def test_a_loaded_replica_becomes_ready():
    starting = replica(state=ReplicaState.starting, age=1, health=READY)
    assert plan(wanted(), [starting], AT, PATIENCE) == [MarkReady("a", READY, 7)]


def test_a_replica_that_cannot_load_is_lost_with_its_own_error():
    error = Invalid("no such layer")
    starting = replica(state=ReplicaState.starting, age=1, health=Health(ReplicaState.starting, {}, error))
    assert plan(wanted(state=DeploymentState.failed), [starting], AT, PATIENCE) == [MarkLost("a", error)]


def test_a_replica_that_never_gets_ready_is_given_up():
    actions = plan(wanted(), [replica(state=ReplicaState.starting, age=61)], AT, PATIENCE)
    assert [type(action) for action in actions] == [MarkLost, Start]


def test_a_dead_replica_is_replaced():
    actions = plan(wanted(), [replica(alive=False, code=-9)], AT, PATIENCE)
    assert [type(action) for action in actions] == [MarkLost, Start]
    assert "killed" in actions[0].error.message


def test_a_replica_that_went_with_its_supervisor_is_replaced_at_once_and_without_blame():
    assert plan(wanted(), [replica(alive=False, pid=None)], AT, PATIENCE) == [Replace("a"), Start(1)]


def test_no_start_before_the_backoff_is_over_nor_after_giving_up():
    assert plan(wanted(retry_at=AT + timedelta(seconds=1)), [], AT, PATIENCE) == []
    assert plan(wanted(state=DeploymentState.failed), [], AT, PATIENCE) == []


def test_the_old_generation_serves_until_the_new_one_is_ready():
    old, new = replica("old", 1), replica("new", 2, ReplicaState.starting, age=1)
    assert plan(wanted(generation=2), [old, new], AT, PATIENCE) == []
    assert plan(wanted(generation=2), [old, replica("new", 2)], AT, PATIENCE) == [Drain("old")]


def test_draining_waits_for_the_gateways_then_stops_then_forgets():
    draining = ReplicaState.draining
    assert plan(None, [replica(state=draining, since=0.5)], AT, PATIENCE) == []
    assert plan(None, [replica(state=draining, since=1.5)], AT, PATIENCE) == [Stop("a")]
    assert plan(None, [replica(state=draining, alive=False, code=0)], AT, PATIENCE) == [Forget("a")]


def test_an_undeployed_replica_is_drained():
    assert plan(None, [replica()], AT, PATIENCE) == [Drain("a")]


def test_fewer_wanted_drains_the_youngest():
    here = [replica("old", age=90), replica("young", age=10)]
    assert plan(wanted(replicas=1), here, AT, PATIENCE) == [Drain("young")]


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
)


@given(st.lists(observations, max_size=8, unique_by=lambda o: o.token), st.integers(1, 4), st.integers(1, 3))
def test_plan_never_leaves_a_served_deployment_without_a_ready_replica(here, replicas, generation):
    actions = plan(wanted(generation, replicas), here, AT, PATIENCE)
    drained = {action.token for action in actions if isinstance(action, Drain)}
    lost = {action.token for action in actions if isinstance(action, MarkLost | Replace)}
    ready = {o.token for o in here if o.state == ReplicaState.ready} - lost
    assert not ready or ready - drained
    starts = sum(action.count for action in actions if isinstance(action, Start))
    current = [o for o in here if o.generation == generation and o.state != ReplicaState.draining and o.token not in lost]
    assert starts <= max(0, replicas - len(current))


def test_backoff_doubles_up_to_a_minute():
    assert [backoff(n).total_seconds() for n in (0, 1, 2, 3, 20)] == [0.5, 0.5, 1.0, 2.0, 60.0]


def test_that_the_supervisor_has_ended_is_a_line_in_the_log_and_no_accident(tmp_path, capsys):
    stop = threading.Event()

    class Ended(InlineExecutor):
        def replicas(self):
            stop.set()
            raise Unavailable("The supervisor does not answer.")

    settings, unexpected = Settings(data=tmp_path), UNEXPECTED.labels("controller")
    db, before = Database(settings.database_url), unexpected._value.get()
    controller = Controller(db, Artefacts(MemoryStore(), settings.cache), Ended(), settings, lambda address: None)
    controller.wake()
    controller.run(stop)
    db.close()
    told = "".join(capsys.readouterr())
    assert "The supervisor does not answer." in told
    assert "Traceback" not in told
    assert unexpected._value.get() == before
