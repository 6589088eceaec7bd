"""Who is started again: a gang that died by itself a few times, one under which control ended many times, a wrong one never."""

from dataclasses import replace
from pathlib import Path

import pytest
from jobs_office import Office

from modelyard.errors import Crashed, Internal, Invalid, ModelyardError, TimedOut
from modelyard.jobs.endings import MOST_ABANDONED, starts_again
from modelyard.jobs.types import Job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    office = Office(Path(tmp_path_factory.mktemp("office")))
    job = office.submit("makes")
    office.close()
    return job


@pytest.mark.parametrize(
    ("setbacks", "further", "restarts", "again"),
    [(0, False, 2, True), (1, False, 2, True), (2, False, 2, False), (2, True, 2, True), (0, True, 0, False)],
)
def test_a_gang_that_died_is_started_again_a_few_times_in_a_row(
    job: Job, setbacks: int, further: bool, restarts: int, again: bool
) -> None:
    for attempt in (1, 1000):  # a job that gets on, from one loss to the next, may have lost any number
        ended = replace(job, attempt=attempt, setbacks=setbacks)
        assert starts_again(ended, Crashed(), restarts, abandoned=False, further=further) is again


@pytest.mark.parametrize("restarts", [0, 2])
@pytest.mark.parametrize(("abandoned", "again"), [(0, True), (MOST_ABANDONED - 1, True), (MOST_ABANDONED, False)])
def test_control_that_ends_costs_no_restart_but_not_for_ever(job: Job, restarts: int, abandoned: int, again: bool) -> None:
    ended = replace(job, attempt=abandoned + 1 + restarts, abandoned=abandoned)
    assert starts_again(ended, Crashed(), restarts, abandoned=True) is again


@pytest.mark.parametrize("error", [Invalid(), TimedOut(), Internal()])
def test_a_gang_that_was_wrong_is_not_started_again(job: Job, error: ModelyardError) -> None:
    assert not starts_again(replace(job, attempt=1), error, 2, abandoned=False)
