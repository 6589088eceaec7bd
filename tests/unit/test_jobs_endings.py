"""How attempts end in the books: who is started again (a gang that died by itself a few times, one under which control ended
many times, a wrong one never), and what is recorded as an evaluation of what."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from jobs_office import Office

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.evaluations import Evaluation, evaluations
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


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    made = Office(tmp_path / "yard")
    made.dataset(tmp_path / "digits")
    made.dataset(tmp_path / "base", "base")
    yield made
    made.close()


def judged(office: Office, kind: str, **config: object) -> tuple[Job, list[Evaluation]]:
    """A job over the datasets 'digits' and 'base' that makes a version of 'm', and what is recorded of it."""
    inputs = {"dataset": "dataset:digits", "base": "dataset:base"}
    submitted = office.submit(kind, config=config, inputs=inputs, target={"kind": "model", "name": "m"})
    [job] = office.finish(submitted.id)
    with office.db.read() as session:
        return job, evaluations(session, "team", job.outputs[0]["hash"]) if job.outputs else []


def test_what_an_output_says_is_recorded_of_it_and_the_jobs_inputs(office: Office) -> None:
    job, [found] = judged(office, "judges", number=7)
    pinned = {one.role: one for one in job.resolved}
    assert (found.baseline, found.baseline_reference) == (pinned["base"].artefact, "base@1")
    assert (found.dataset, found.dataset_reference) == (pinned["dataset"].artefact, "digits@1")
    assert (found.job, found.split, found.evidence) == (job.id, "report", {"rows": 7})
    with office.db.read() as session:
        assert catalogue.resolve(session, "team", "model", "m@1").metadata == {"kept": True}


def test_it_may_speak_of_an_input_instead(office: Office) -> None:
    job, of_output = judged(office, "judges", text="base")
    assert of_output == []
    with office.db.read() as session:
        [found] = evaluations(session, "team", next(one.artefact for one in job.resolved if one.role == "base"))
    assert found.job == job.id


def test_a_job_cannot_speak_of_what_it_was_not_given(office: Office) -> None:
    job, _ = judged(office, "judges", text="base@1")
    assert job.error is not None
    assert job.error["message"].startswith("An evaluation names the role of its candidate, not 'base@1'")
    assert (job.state, list(job.outputs)) == ("failed", [])


def test_a_kind_that_does_not_evaluate_is_not_believed(office: Office) -> None:
    _, found = judged(office, "claims")
    assert found == []


def test_what_a_child_found_holds_for_the_version_that_its_parent_makes_of_it(office: Office) -> None:
    job, [found] = judged(office, "adopts", number=3)
    assert found.job != job.id
    assert found.evidence == {"rows": 3}
    with office.db.read() as session:
        version = catalogue.resolve(session, "team", "model", "m@best")
    assert (version.artefact, version.job) == (found.candidate, found.job)
    assert version.metadata == {"kept": True, "adopted": True}
