"""A child that was done before is not done again: only the same one, of the same project, and only where that is asked for."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_office import Office

from modelyard.jobs import service
from modelyard.jobs.types import Job, State, Submission
from modelyard.tenancy import ledger
from modelyard.tenancy.types import Principal, Scope


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "office")
    office.dataset(tmp_path / "digits")
    (tmp_path / "more").mkdir()
    office.dataset(tmp_path / "more", "more")
    yield office
    office.close()


CONFIG = {"text": "a", "number": 3}
ANY: dict[str, Any] = {}


def child(office: Office, *, project: str = "team", reuse: Any = ANY, parent: bool = True, **asked: Any) -> Job:
    principal = Principal(project, "key1", Scope.write)
    full = {"kind": "makes", "config": CONFIG, "inputs": {"base": "dataset:digits@1"}, **asked}
    with office.db.begin() as session:
        more: dict[str, Any] = {"nodes": office.executor.nodes()}
        above = service.submit(session, principal, Submission(kind="holds"), office.kinds, **more)
        made = service.submit(
            session, principal, Submission(**full), office.kinds, parent=above if parent else None, reuse=reuse, **more
        )
        service.cancel(session, principal, above.id)
        return service.get(session, project, made.id)


def test_what_was_done_before_is_there_at_once(office: Office) -> None:
    first = child(office)
    assert first.state is State.queued
    office.scheduler.wake()
    (made,) = office.finish(first.id)
    again = child(office)
    assert (again.state, again.attempt, again.facts) == (State.succeeded, 0, made.facts)
    assert again.outputs == [{"job": first.id, **output} for output in made.outputs]
    assert child(office).outputs == again.outputs  # it names who made it, not who reused it
    with office.db.read() as session:
        noted = [row for row in ledger.audit_log(session, "team") if row["action"] == "job.reuse"]
        used = [row["subject"] for row in ledger.usage(session, "team", group_by=("subject",))]
    assert len(noted) == 2
    assert again.id not in used


@pytest.mark.parametrize(
    "other",
    [
        {"config": {**CONFIG, "number": 4}},
        {"inputs": {"base": "dataset:more@1"}},
        {"inputs": {}},
        {"ranks": 2},
        {"kind": "counts"},
        {"reuse": None},
        {"reuse": {"samples": 4}},
        {"reuse": {"environment": {"torch": "3"}}},
    ],
)
def test_only_the_same_is_reused(office: Office, other: dict[str, Any]) -> None:
    first = child(office)
    office.scheduler.wake()
    office.finish(first.id)
    assert child(office).state is State.succeeded
    assert child(office, reuse={"samples": 3}).state is State.succeeded
    assert child(office, **other).state is State.queued


def test_what_a_person_asked_for_or_another_project_has_is_not_reused(office: Office) -> None:
    first = child(office, parent=False, inputs={})
    office.scheduler.wake()
    office.finish(first.id)
    assert child(office, inputs={}).state is State.queued  # that one was no child
    second = child(office, inputs={}, config={"text": "b"})
    office.scheduler.wake()
    office.finish(second.id)
    assert child(office, inputs={}, config={"text": "b"}).state is State.succeeded
    assert child(office, inputs={}, config={"text": "b"}, project="other").state is State.queued


def test_one_that_failed_is_done_again(office: Office) -> None:
    first = child(office, kind="refuses", config={"text": "no"}, inputs={})
    office.scheduler.wake()
    (ended,) = office.finish(first.id)
    assert ended.state is State.failed
    assert child(office, kind="refuses", config={"text": "no"}, inputs={}).state is State.queued
