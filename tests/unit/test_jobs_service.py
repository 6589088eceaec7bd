"""Submitting: what is refused says what there is; what is taken is pinned. And no project sees another's jobs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_office import Office
from sqlalchemy import update

from modelyard.catalogue import service as catalogue
from modelyard.errors import Forbidden, Invalid, NotFound
from modelyard.jobs import service
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import Amount, Node, State
from modelyard.tenancy import ledger
from modelyard.tenancy.types import Principal, Scope
from modelyard.testing import InlineExecutor

OTHER = Principal("other", "key2", Scope.write)
MODEL = {"kind": "model", "name": "m"}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path)
    office.hash = office.dataset(tmp_path / "d")  # type: ignore[attr-defined]
    yield office
    office.close()


def test_inputs_are_pinned_when_the_job_is_submitted(office: Office, tmp_path: Path) -> None:
    with office.db.begin() as session:
        catalogue.set_alias(session, "team", "dataset", "digits", "good", 1)
    job = office.submit("trains", inputs={"dataset": "dataset:digits@good"}, target=MODEL, config={"number": 2})
    office.dataset(tmp_path / "d2")
    assert job.inputs == {"dataset": "dataset:digits@1"}
    (pinned,) = job.resolved
    assert (pinned.role, pinned.reference, pinned.metadata) == ("dataset", "digits@1", {"rows": 1})
    assert job.config == {"text": "", "number": 2, "inner": {"depth": 1}}
    assert (job.state, job.attempt, job.project, job.key) == (State.queued, 0, "team", "key1")


def test_an_artefact_may_be_an_input(office: Office) -> None:
    reference = f"artefact:{office.hash}"  # type: ignore[attr-defined]
    assert office.submit("makes", inputs={"base": reference}).inputs == {"base": reference}


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"kind": "trans"}, NotFound, "Did you mean 'trains'"),
        (
            {"config": {"number": "x", "inner": {"depth": "y"}, "z": 1}},
            Invalid,
            "'number' is \"x\"; .*'inner.depth' is .*'z' is not an option of 'trains'",
        ),
        ({"inputs": {}}, Invalid, "needs the input 'dataset'"),
        ({"inputs": {"dataset": "dataset:digits", "code": "x"}}, Invalid, "no input 'code'; it takes 'dataset', 'model'"),
        ({"inputs": {"dataset": "dataset:digit"}}, NotFound, "Did you mean 'digits'"),
        ({"inputs": {"dataset": "dataset:digits@7"}}, NotFound, "'1'"),
        ({"inputs": {"dataset": "artefact:00"}}, NotFound, "No artefact '00'. The newest are: '"),
        ({"inputs": {"dataset": "digits@1"}}, Invalid, "expected 'dataset:NAME@VERSION'"),
        ({"inputs": {"dataset": "dataset:"}}, Invalid, "expected 'dataset:NAME@VERSION'"),
        ({"ranks": 2}, Invalid, "run as one rank, not 2"),
        ({"target": None}, Invalid, 'makes a model: name it as "target"'),
        ({"target": {"kind": "dataset", "name": "d"}}, Invalid, "makes a model, not a dataset"),
    ],
)
def test_what_is_wrong_is_said(office: Office, asked: dict[str, Any], error: type[Exception], message: str) -> None:
    right = {"kind": "trains", "inputs": {"dataset": "dataset:digits"}, "target": MODEL}
    assert office.submit(**right).state is State.queued
    with pytest.raises(error, match=message):
        office.submit(**{**right, **asked})
    with office.db.read() as session:
        assert len(service.jobs(session, "team")) == 1


def test_what_lacks_only_a_node_that_is_away_waits_for_it(office: Office) -> None:
    office.executor = InlineExecutor(nodes=[Node("a", Amount(4)), Node("b", Amount(4), away=True)])
    assert office.submit("makes", ranks=6).state is State.queued


def test_more_ranks_than_there_could_ever_be_are_refused(office: Office) -> None:
    assert office.submit("makes", ranks=4).ranks == 4
    with pytest.raises(Invalid, match=r"A gang of 5 needs 5 CPUs at once; there are 4\. Ask for at most 4 ranks"):
        office.submit("makes", ranks=5)


def test_a_gang_that_no_node_has_room_for_is_refused(office: Office) -> None:
    with pytest.raises(Invalid, match=r"A gang of 1 needs 2 GPUs at once; there are 0\. Ask for less for each rank"):
        office.submit("makes", resources={"gpus": 2})
    assert office.submit("makes", ranks=2, resources={"cpus": 2, "memory": 1 << 30}).resources == Amount(2, 0, 1 << 30)
    with pytest.raises(Invalid, match=r"needs 6 CPUs at once; there are 4\. Ask for at most 2 ranks"):
        office.submit("makes", ranks=3, resources={"cpus": 2})


def test_a_priority_above_0_is_for_administrators_of_the_default_project(office: Office) -> None:
    assert office.submit("makes", priority=-100).priority == -100
    with pytest.raises(Forbidden, match="before every project's share"):
        office.submit("makes", priority=1)
    with pytest.raises(Forbidden):
        office.submit("makes", Principal("team", "key", Scope.admin), priority=1)
    with pytest.raises(Forbidden):
        office.submit("makes", Principal("default", "key", Scope.write), priority=1)
    assert office.submit("makes", Principal("default", "key", Scope.admin), priority=100).priority == 100
    with pytest.raises(Invalid, match="priority"):
        office.submit("makes", priority=101)


def test_an_unknown_job_is_told_the_newest_there_are(office: Office) -> None:
    made = [office.submit("makes").id for _ in range(7)]
    with office.db.begin() as session, pytest.raises(NotFound) as caught:
        service.get(session, "team", f"{made[2][:-1]}z")
    newest = ", ".join(f"'{job}'" for job in reversed(made[2:]))
    assert caught.value.message == f"No job '{made[2][:-1]}z'. Did you mean '{made[2]}'? The newest are: {newest}, …."


def test_another_projects_things_do_not_exist(office: Office) -> None:
    mine = office.submit("makes")
    with pytest.raises(NotFound):
        office.submit("makes", OTHER, inputs={"base": "dataset:digits"})
    with pytest.raises(NotFound):
        office.submit("makes", OTHER, inputs={"base": f"artefact:{office.hash}"})  # type: ignore[attr-defined]
    with office.db.begin() as session:
        assert service.jobs(session, "other") == []
        for verb in (service.get, service.events):
            with pytest.raises(NotFound, match="There is no job yet"):
                verb(session, "other", mine.id)  # type: ignore[operator]
        with pytest.raises(NotFound):
            service.cancel(session, OTHER, mine.id)


def test_jobs_are_listed_newest_first_and_by_state(office: Office) -> None:
    first, second = office.submit("makes"), office.submit("makes")
    office.cancel(first.id)
    with office.db.read() as session:
        assert [job.id for job in service.jobs(session, "team")] == [second.id, first.id]
        assert [job.id for job in service.jobs(session, "team", "cancelled")] == [first.id]
        with pytest.raises(Invalid, match="queued, starting, running"):
            service.jobs(session, "team", "done")


def test_what_is_under_way_is_what_runs_and_the_head_of_the_queue(office: Office) -> None:
    jobs = [office.submit("makes") for _ in range(6)]
    office.cancel(jobs[0].id)
    with office.db.begin() as session:
        session.execute(update(JobRow).where(JobRow.id == jobs[4].id).values(state="running"))
        session.execute(update(JobRow).where(JobRow.id == jobs[5].id).values(priority=1))
    with office.db.read() as session:
        found, counts = service.underway(session, "team", first=2)
        assert [job.id for job in found] == [jobs[4].id, jobs[5].id, jobs[1].id]
        assert counts == {"queued": 4, "starting": 0, "running": 1}
        assert service.underway(session, "other", first=2) == ([], {"queued": 0, "starting": 0, "running": 0})


def test_events_go_on_after_a_number(office: Office) -> None:
    job = office.submit("makes")
    office.cancel(job.id)
    with office.db.read() as session:
        events = service.events(session, "team", job.id)
        assert [(e["seq"], e["type"], e["state"]) for e in events] == [(1, "state", "queued"), (2, "state", "cancelled")]
        assert [e["seq"] for e in service.events(session, "team", job.id, after=1)] == [2]
        assert [e["seq"] for e in service.events(session, "team", job.id, limit=1)] == [1]


def test_who_did_what_is_in_the_audit_log(office: Office) -> None:
    job = office.submit("makes")
    office.cancel(job.id)
    office.cancel(job.id)
    with office.db.read() as session:
        log = [(row["key"], row["action"]) for row in ledger.audit_log(session, "team") if row["subject"] == job.id]
    assert log == [("key1", "job.submit"), ("key1", "job.cancel")]
