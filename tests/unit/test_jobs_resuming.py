"""A job goes on from the checkpoint of another that failed or was cancelled; what the checkpoint is of must be the same."""

from pathlib import Path

import pytest
from jobs_office import GATE, Office

from modelyard.errors import Invalid, NotFound
from modelyard.jobs.retention import collect
from modelyard.jobs.types import State


@pytest.fixture
def cancelled(office: Office) -> str:
    """A job with a checkpoint at 5."""
    job = office.submit("counts", config={"text": "a", "number": 1}).id
    office.until(lambda: "kept" in office.said(job, "log", "text"))
    office.cancel(job)
    (ended,) = office.finish(job)
    assert ended.state is State.cancelled
    return job


def test_the_first_attempt_begins_at_the_checkpoint_of_the_other_job(office: Office, cancelled: str) -> None:
    job = office.submit("counts", config={"text": "a", "number": 2}, resume=cancelled).id
    office.until(lambda: "kept" in office.said(job, "log", "text"))
    assert office.said(job, "log", "text")[0] == "begins at 5"
    GATE.set()
    (ended,) = office.finish(job)
    GATE.clear()
    assert ended.state is State.succeeded
    assert ended.to_json()["resume"] == cancelled
    assert ended.facts["0"]["resumed_from"] == cancelled


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"config": {"text": "b", "inner": {"depth": 2}}}, 'option inner.depth is 2, there 1; option text is "b", there "a"'),
        ({"config": {"text": "a"}, "inputs": {"base": "dataset:digits"}}, "input 'base' is digits@1, there not given"),
        ({"kind": "begins"}, "go on from no other job's checkpoint"),
    ],
)
def test_what_is_of_other_work_is_refused_at_submission(
    office: Office, cancelled: str, tmp_path: Path, asked: dict, told: str
) -> None:
    office.dataset(tmp_path / "d")
    with pytest.raises(Invalid, match=told):
        office.submit(**{"kind": "counts", "resume": cancelled, **asked})


def test_a_job_that_runs_or_is_done_or_is_of_others_is_refused(office: Office, cancelled: str) -> None:
    runs = office.submit("counts").id
    office.until(lambda: office.job(runs).state is State.running)
    with pytest.raises(Invalid, match=f"The job {runs} is running; one that failed or was cancelled is resumed"):
        office.submit("counts", resume=runs)
    with pytest.raises(NotFound):
        office.submit("counts", resume="unknown")


def test_a_job_that_kept_nothing_is_told_when_it_would_start(office: Office, cancelled: str) -> None:
    office.artefacts.drop_checkpoints("team", cancelled)
    (ended,) = office.finish(office.submit("counts", config={"text": "a"}, resume=cancelled).id)
    assert ended.state is State.failed
    assert ended.error is not None
    assert f"The job {cancelled} has no checkpoint to go on from" in ended.error["message"]


def test_a_checkpoint_stays_while_a_job_waits_to_go_on_from_it(office: Office, cancelled: str) -> None:
    office.scheduler.close()
    office.submit("counts", config={"text": "a"}, resume=cancelled)  # nobody starts it
    assert collect(office.db, office.artefacts, days=0) == 0
    assert office.artefacts.checkpointed("team") == {cancelled}
