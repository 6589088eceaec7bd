"""Who may change a job: whoever holds its lease, until it has ended; and what every change of state leaves behind."""

import pytest
from jobs_office import Office
from sqlalchemy import update

from modelyard.jobs import records
from modelyard.jobs.records import Lost
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import State


def held(office: Office, lease: str = "lease1", **asked: object) -> str:
    """A job that an attempt holds."""
    job = office.submit("makes", **asked).id
    with office.db.begin() as session:
        records.evolve(session, job, None, State.starting, token=lease, attempt=1)
    return job


@pytest.mark.parametrize("lease", [None, "lease2"])
def test_nobody_changes_a_job_that_another_holds(office: Office, lease: str | None) -> None:
    job = held(office)
    for write in (
        lambda session: records.change(session, job, lease, why="mine"),
        lambda session: records.evolve(session, job, lease, State.running),
        lambda session: records.requeue(session, job, lease, "lost"),
        lambda session: records.append(session, job, lease, [("log", {"text": "x"})]),
    ):
        with office.db.begin() as session, pytest.raises(Lost):
            write(session)
    assert (office.job(job).state, office.job(job).why) == (State.starting, None)
    assert len(office.events(job)) == 2


def test_what_has_ended_stays_as_it_is(office: Office) -> None:
    job = held(office)
    with office.db.begin() as session:
        records.evolve(session, job, "lease1", State.failed, error={"code": "crashed", "message": "gone"})
        for lease in (None, "lease1"):
            with pytest.raises(Lost):
                records.evolve(session, job, lease, State.succeeded)
        records.cancel(session, office.job(job))
    ended = office.job(job)
    assert (ended.state, ended.token, ended.cancelling) == (State.failed, None, False)
    assert ended.finished is not None
    assert office.events(job)[-1]["error"] == {"code": "crashed", "message": "gone"}


def test_events_are_numbered_in_order_and_nothing_is_said_of_nothing(office: Office) -> None:
    job = held(office)
    with office.db.begin() as session:
        records.append(session, job, "lease1", [("log", {"text": "a"}), ("log", {"text": "b"})])
        records.append(session, job, "not the lease", [])
        records.append(session, job, "lease1", [("log", {"text": "c"})])
    assert [(e["seq"], e.get("text")) for e in office.events(job)][2:] == [(3, "a"), (4, "b"), (5, "c")]
    assert office.job(job).events == 5


def test_back_in_the_queue_a_job_keeps_its_place_and_its_attempts(office: Office) -> None:
    job = held(office)
    with office.db.read() as session:
        place = session.get_one(JobRow, job).place
    with office.db.begin() as session:
        records.change(session, job, "lease1", pids=[7])
        records.requeue(session, job, "lease1", "its node is gone")
    waiting = office.job(job)
    assert (waiting.state, waiting.token, waiting.attempt, list(waiting.pids)) == (State.queued, None, 1, [])
    assert waiting.why == "its node is gone"
    with office.db.read() as session:
        assert session.get_one(JobRow, job).place == place


def test_a_job_that_never_ran_is_cancelled_at_once_and_another_is_asked(office: Office) -> None:
    never, runs = office.submit("makes").id, held(office)
    with office.db.begin() as session:
        for job in (never, runs):
            records.cancel(session, office.job(job))
    assert office.job(never).state is State.cancelled
    assert (office.job(runs).state, office.job(runs).cancelling) == (State.starting, True)


def test_a_job_that_was_claimed_a_moment_ago_is_asked_too(office: Office) -> None:
    seen = office.submit("makes")
    with office.db.begin() as session:
        records.evolve(session, seen.id, None, State.starting, token="lease1", attempt=1)
        records.cancel(session, seen)
    assert (office.job(seen.id).state, office.job(seen.id).cancelling) == (State.starting, True)


def test_children_end_with_their_parent_and_nobody_elses(office: Office) -> None:
    parent, waits, runs, other = office.submit("makes").id, office.submit("makes").id, held(office), office.submit("makes").id
    with office.db.begin() as session:
        session.execute(update(JobRow).where(JobRow.id.in_([waits, runs])).values(parent=parent))
        records.cancel_children(session, parent)
    assert office.job(waits).state is State.cancelled
    assert office.job(runs).cancelling
    assert (office.job(other).state, office.job(parent).state) == (State.queued, State.queued)
