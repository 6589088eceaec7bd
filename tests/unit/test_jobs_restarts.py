"""How long a lost job waits, and what the queue says of it."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jobs_office
import pytest
from jobs_office import GATE, Office
from pydantic import ValidationError

from modelyard.errors import Invalid
from modelyard.jobs.restarts import attempts, countdown, pause
from modelyard.jobs.types import State

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_the_pause_doubles_up_to_a_minute() -> None:
    assert [pause(setbacks) for setbacks in range(9)] == [0, 0.5, 1, 2, 4, 8, 16, 32, 60]
    assert pause(10_000) == 60


def test_attempts_in_a_row_are_counted() -> None:
    assert [attempts(setbacks, 2) for setbacks in range(3)] == ["attempt 1 of 3", "attempt 2 of 3", "attempt 3 of 3"]


def test_the_countdown_ends() -> None:
    assert countdown(NOON + timedelta(seconds=7.2), NOON) == "restarts in 8 s, "
    assert countdown(NOON, NOON) == countdown(None, NOON) == ""


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    GATE.clear()
    jobs_office.CLIMBS = True
    office = Office(tmp_path, job_restarts=5)
    yield office
    office.close()


def lose(office: Office, job: str, *, kept: bool) -> None:
    """Wait for the job's gang and kill it, before or after it kept a checkpoint."""
    attempt = office.job(job).attempt
    mark = "kept" if kept else "begins"
    before = sum(text.startswith(mark) for text in office.said(job, "log", "text"))
    office.until(lambda: sum(text.startswith(mark) for text in office.said(job, "log", "text")) > before)
    office.scheduler._active[job].handle.kill()  # type: ignore[union-attr]
    office.until(lambda: office.job(job).state in (State.queued, State.failed) or office.job(job).attempt > attempt + 1)


def test_a_job_that_gets_on_is_started_again_at_once(office: Office) -> None:
    job = office.submit("counts").id
    lose(office, job, kept=True)
    assert (office.job(job).setbacks, office.job(job).not_before) == (0, None)
    assert any(text.startswith("attempt 1 was lost and is started again: ") for text in office.said(job, "log", "text"))


def test_one_that_gets_on_is_started_again_as_often_as_it_does_and_no_more(office: Office) -> None:
    job = office.submit("climbs", max_restarts=1).id
    for attempt in range(1, 7):
        office.until(lambda n=attempt: office.said(job, "log", "text").count("kept") == n)
        jobs_office.CLIMBS = attempt < 4  # the fifth comes no further than the fourth
        office.scheduler._active[job].handle.kill()  # type: ignore[union-attr]
        office.until(lambda n=attempt: office.job(job).attempt > n or office.job(job).state is State.failed)
        assert office.job(job).setbacks == (attempt >= 5)
    assert (office.job(job).state, office.job(job).attempt) == (State.failed, 6)


def test_another_waits_and_the_queue_says_for_what(office: Office) -> None:
    job = office.submit("begins", max_restarts=1).id
    lose(office, job, kept=False)
    lost = office.job(job)
    assert (lost.state, lost.setbacks) == (State.queued, 1)
    assert str(lost.to_json()["why"]).startswith("restarts in 1 s, attempt 2 of 2: ")
    office.until(lambda: office.job(job).state is State.running)
    assert lost.not_before is not None
    assert datetime.now(UTC) >= lost.not_before


def test_a_submission_says_how_often(office: Office) -> None:
    job = office.submit("begins", max_restarts=0).id
    lose(office, job, kept=False)
    (ended,) = office.finish(job)
    assert (ended.state, ended.attempt, ended.to_json()["max_restarts"]) == (State.failed, 1, 0)


@pytest.mark.parametrize("times", [-1, 1001])
def test_no_other_number_is_taken(office: Office, times: int) -> None:
    with pytest.raises((Invalid, ValidationError), match="max_restarts"):
        office.submit("makes", max_restarts=times)
