"""Whose checkpoints go: of jobs that are over, of failed ones after some days, of unknown ones. Who may go on keeps them."""

import os
import time
from pathlib import Path

from jobs_office import Office

from modelyard.jobs.retention import collect
from modelyard.jobs.types import State
from modelyard.storage import Artefacts, FolderStore


def keep(office: Office, folder: Path, *jobs: str) -> None:
    folder.mkdir()
    (folder / "step").write_text("1")
    for job in jobs:
        office.artefacts.put_checkpoint("team", job, folder)


def test_what_nobody_resumes_from_goes(office: Office, tmp_path: Path) -> None:
    (done,) = office.finish(office.submit("makes").id)
    (failed,) = office.finish(office.submit("refuses", config={"text": "no"}).id)
    running = office.submit("holds").id
    office.until(lambda: office.job(running).state is State.running)
    office.until(lambda: [folder.name for folder in office.settings.jobs.iterdir()] == [running])
    keep(office, tmp_path / "kept", done.id, failed.id, running, "unknown")
    assert collect(office.db, office.artefacts, days=1) == 2
    assert office.artefacts.checkpointed("team") == {failed.id, running}
    assert collect(office.db, office.artefacts, days=0) == 1
    assert office.artefacts.checkpointed("team") == {running}
    assert collect(office.db, office.artefacts, days=0) == 0


def test_what_was_left_half_written_goes_a_day_after(office: Office, tmp_path: Path) -> None:
    artefacts = Artefacts(FolderStore(tmp_path / "store"), tmp_path / "cache")
    for name, hours in (("staged#1", 23), ("staged#2", 25)):
        (tmp_path / "store" / name).write_bytes(b"half")
        os.utime(tmp_path / "store" / name, (time.time() - hours * 3600,) * 2)
    assert collect(office.db, artefacts, days=1) == 0
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["staged#1"]


def test_the_scheduler_has_it_done(office: Office, tmp_path: Path) -> None:
    keep(office, tmp_path / "kept", "unknown")
    first = office.scheduler
    office.begin()
    office.until(lambda: not office.artefacts.checkpointed("team"))
    first.close()
