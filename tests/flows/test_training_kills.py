"""Ranks killed at random moments, some while a checkpoint is being kept: the job always recovers, soon, and ends with the
weights of a run that nobody disturbed, bit for bit. Three kills here; thirty in the soak.

What came of it (the seed, and of each kill the seconds until the next gang's first step) is printed and written as JSON: to
the file that MODELYARD_RECORD names, where it does, otherwise to pytest's folder.
"""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jobs_bench import Bench, bench

from modelyard import work
from modelyard.data.config import ImportDatasetConfig
from modelyard.data.importing import run as import_dataset
from modelyard.jobs import service
from modelyard.jobs.types import Job, State, Submission, Target
from modelyard.kinds import FolderContext, FolderOutputs

# Seconds from a kill to the first step of the next gang: on a quiet machine, and on one that is busy with other things, as in
# `make test`, which runs two files at once: there a gang's start, two seconds of processor time, waits for its turn.
SOON, LATER = 5.0, 30.0
QUIET = 0.5  # processes that were ready to run in the minute before, at most
LONG = 600.0  # seconds: what a slow machine takes for all epochs
RECORD = os.environ.pop("MODELYARD_RECORD", None)  # it is no setting of the platform, which refuses what it does not know
CONFIG = {"epochs": 12, "batch_size": 24, "seed": 7, "image_classifier": {"width": 8}}


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("yard"), job_memory=2 << 30, job_cpus=2) as yard:
        yard.kinds.add("train", work.TRAIN)
        yield yard


@pytest.fixture(scope="module")
def dataset(yard: Bench, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("digits")
    outputs = FolderOutputs(folder)
    import_dataset(ImportDatasetConfig(source="sklearn:digits"), {}, outputs, FolderContext(folder))
    return f"artefact:{yard.artefact(outputs.published['dataset']['folder'])}"


def submit(yard: Bench, dataset: str, **config: Any) -> str:
    asked = Submission(
        kind="train",
        config=CONFIG | config,
        inputs={"dataset": dataset},
        ranks=2,
        target=Target(kind="model", name="m"),
        max_restarts=1000,
    )
    with yard.db.begin() as session:
        job = service.submit(session, yard.principal, asked, yard.kinds, nodes=yard.executor.nodes())
    yard.scheduler.wake()
    return job.id


def steps(job: Job) -> int:
    return int(job.progress["done"]) if job.progress and job.state is State.running else -1


def keeping(yard: Bench, job: str) -> bool:
    """Whether a checkpoint is being written or stored right now."""
    return any(list((attempt / "work").glob("checkpoint-*")) for attempt in (yard.settings.jobs / job).glob("*"))


def kept_whole(yard: Bench, job: str) -> bool:
    """Whether the store has a checkpoint to go on from."""
    return any(Path(urlsplit(yard.settings.store_url).path).glob(f"**/{job}/latest.json"))


class Killer:
    """Kills ranks of one job, each some steps after the last, `within` so many at most; remembers of each kill whether a
    checkpoint was being kept, and how soon the job was back."""

    def __init__(self, yard: Bench, job: str, seed: int, within: int) -> None:
        self.yard, self.job, self.seed, self.draw, self.within = yard, job, seed, random.Random(seed), within
        self.kills: list[dict[str, Any]] = []

    @property
    def recoveries(self) -> list[float]:
        return [kill["seconds"] for kill in self.kills]

    @property
    def while_keeping(self) -> int:
        return sum(kill["during_checkpoint"] for kill in self.kills)

    def strike(self, *, while_keeping: bool) -> bool:
        """Wait for a random moment, kill a random rank, wait for the next gang's first step. False: the job was done before."""
        yard, before = self.yard, self.yard.job(self.job)
        wanted = steps(before) + self.draw.randint(1, self.within)
        during, pids = False, []
        while not pids or (while_keeping and not during):  # the checkpoint may be stored by the time that this is looked at
            if yard.until(lambda: self._moment(wanted, while_keeping=while_keeping)) == "over":
                return False
            attempt, pids = yard.job(self.job).attempt, list(yard.job(self.job).pids)
            during = keeping(yard, self.job)
        at, pid = steps(yard.job(self.job)), self.draw.choice(pids)
        kept = kept_whole(yard, self.job)
        began = time.monotonic()
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return yard.job(self.job).state.ended is False
        yard.until(lambda: self._again(attempt) or yard.job(self.job).state.ended)
        if yard.job(self.job).state.ended:
            return False
        seconds = round(time.monotonic() - began, 3)
        self.kills.append({"step": at, "seconds": seconds, "during_checkpoint": during, "checkpointed": kept})
        return True

    def _moment(self, wanted: int, *, while_keeping: bool) -> str | None:
        job = self.yard.job(self.job)
        if job.state.ended:
            return "over"
        reached = steps(job) >= wanted and bool(job.pids)
        return "now" if reached and (not while_keeping or keeping(self.yard, self.job)) else None

    def _again(self, attempt: int) -> bool:
        events = self.yard.events(self.job)
        begun = [event["seq"] for event in events if event["type"] == "state" and event["state"] == "running"]
        return len(begun) > attempt and any(event["type"] == "progress" and event["seq"] > begun[attempt] for event in events)


def disturbed(yard: Bench, dataset: str, kills: int, seed: int, within: int = 60, **config: Any) -> tuple[Job, Killer]:
    """A job under so many kills, every third of them while a checkpoint is kept."""
    print(f"kills: {kills}, seed: {seed}", flush=True)
    job = submit(yard, dataset, **config)
    killer = Killer(yard, job, seed, within)
    while len(killer.recoveries) < kills and killer.strike(while_keeping=len(killer.recoveries) % 3 == 1):
        pass
    (ended,) = yard.finish(job, patience=LONG)
    return ended, killer


def undisturbed(yard: Bench, dataset: str, **config: Any) -> Job:
    (ended,) = yard.finish(submit(yard, dataset, **config), patience=LONG)
    return ended


def check(yard: Bench, ended: Job, killer: Killer, quiet: Job, kills: int, soon: float) -> None:
    assert (ended.state, quiet.state) == (State.succeeded, State.succeeded), (ended.error, quiet.error)
    assert len(killer.recoveries) == kills
    assert ended.attempt == 1 + kills
    assert max(killer.recoveries) < soon, killer.recoveries
    assert hashes(ended) == hashes(quiet)
    resumed = sum("resumed after" in line for line in yard.log(ended.id).splitlines())
    assert resumed >= sum(kill["checkpointed"] for kill in killer.kills) > 0  # each from a checkpoint, where there was one


def hashes(job: Job) -> list[str]:
    return [output["hash"] for output in job.outputs]


def write(folder: Path, name: str, ended: Job, killer: Killer, quiet: Job) -> None:
    """The outcome, beside what is recorded already, also of a run that does not pass."""
    file = Path(RECORD) if RECORD else folder / "kills.json"
    said = json.loads(file.read_text()) if file.exists() else {}
    said[name] = {
        "seed": killer.seed,
        "kills": killer.kills,
        "attempts": ended.attempt,
        "hashes": {"disturbed": hashes(ended), "undisturbed": hashes(quiet), "equal": hashes(ended) == hashes(quiet)},
    }
    file.write_text(json.dumps(said, indent=1) + "\n")
    print(json.dumps(said[name]))


def test_three_kills_change_nothing(yard: Bench, dataset: str, tmp_path: Path) -> None:
    soon = SOON if os.getloadavg()[0] < QUIET else LATER
    config = {"epochs": 10, "checkpoint_steps": 20}  # within an epoch, too
    ended, killer = disturbed(yard, dataset, 3, seed=1, **config)
    quiet = undisturbed(yard, dataset, **config)
    write(tmp_path, "three kills", ended, killer, quiet)
    check(yard, ended, killer, quiet, 3, soon)
    assert killer.while_keeping >= 1


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mesh", ["data", "shard=2"])
def test_thirty_kills_change_nothing(yard: Bench, dataset: str, mesh: str, seed: int, tmp_path: Path) -> None:
    config = {"epochs": 150, "checkpoint_steps": 20, "mesh": mesh}
    # Most of the kills come after a checkpoint that is new: a job that comes no further is made to wait, as it should be.
    ended, killer = disturbed(yard, dataset, 30, seed=seed, within=200, **config)
    quiet = undisturbed(yard, dataset, **config)
    write(tmp_path, f"thirty kills, {mesh}", ended, killer, quiet)
    check(yard, ended, killer, quiet, 30, SOON)
    assert killer.while_keeping >= 5
