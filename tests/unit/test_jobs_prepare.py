"""What a gang is given: its inputs verified, its newest checkpoint, and the time that is left."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from jobs_office import Office

from modelyard.db import now
from modelyard.errors import Damaged
from modelyard.jobs.active import Active
from modelyard.jobs.prepare import prepare
from modelyard.jobs.types import Gang, Job


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    office = Office(tmp_path / "office", job_timeout=100.0, job_memory=7 << 20)
    office.dataset(tmp_path / "d")
    yield office
    office.close()


@pytest.fixture
def job(office: Office) -> Job:
    job = office.submit(
        "trains", inputs={"dataset": "dataset:digits"}, target={"kind": "model", "name": "m"}, config={"number": 2}
    )
    return replace(job, token="lease1", attempt=1)


def prepared(office: Office, job: Job, folder: Path) -> Gang:
    return prepare(Active(job, folder), office.kinds, office.artefacts, office.settings)


def test_a_gang_has_its_inputs_its_kind_and_its_limits(office: Office, job: Job, tmp_path: Path) -> None:
    gang = prepared(office, job, tmp_path / "job")
    assert (gang.inputs["dataset"].folder / "a.txt").read_text() == "digits"
    assert gang.inputs["dataset"].reference == "digits@1"
    assert (gang.token, gang.run, gang.config_path) == ("lease1", "jobs_office:makes", "jobs_office:Plan")
    assert (gang.config["number"], gang.memory, gang.timeout) == (2, 7 << 20, 100.0)
    assert gang.work.is_dir()
    assert gang.work.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("asked", "spent", "left"), [(None, 30, 70), (20.0, 5, 15), (20.0, 3600, 1)])
def test_earlier_attempts_count_against_its_time(
    office: Office, job: Job, tmp_path: Path, asked: float | None, spent: int, left: float
) -> None:
    gang = prepared(office, replace(job, timeout=asked, started=now() - timedelta(seconds=spent)), tmp_path / "job")
    assert gang.timeout == pytest.approx(left, abs=1.0)
    before = replace(job, timeout=asked, started=None, spent=float(spent))  # it made room, and waited for what time ever
    assert prepared(office, before, tmp_path / "again").timeout == pytest.approx(left, abs=1.0)


def test_only_a_later_attempt_resumes(office: Office, job: Job, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "step").write_text("5")
    office.artefacts.put_checkpoint("team", job.id, kept)
    assert prepared(office, job, tmp_path / "first").resume is None
    resume = prepared(office, replace(job, attempt=2), tmp_path / "second").resume
    assert resume is not None
    assert (resume / "step").read_text() == "5"
    assert prepared(office, replace(job, id="another", attempt=2), tmp_path / "third").resume is None
    (key,) = (key for key, data in office.store.objects.items() if data == b"5")
    office.store.objects[key] = b"6"
    with pytest.raises(Damaged, match="No checkpoint of this job is whole: The file 'step' is damaged"):
        prepared(office, replace(job, attempt=2), tmp_path / "fourth")


def test_an_input_that_changed_is_refused(office: Office, job: Job, tmp_path: Path) -> None:
    for key in office.store.objects:
        if "/blobs/" in key:
            office.store.objects[key] = b"DIGITS"
    with pytest.raises(Damaged):
        prepared(office, job, tmp_path / "job")
