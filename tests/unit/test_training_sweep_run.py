"""A sweep over a training that is none: what it submits, stops, registers and reports, and how it goes on where it was lost."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs_office
import pytest
from jobs_office import Office

from modelyard.catalogue import service as catalogue
from modelyard.errors import Crashed, Invalid
from modelyard.jobs import service
from modelyard.jobs.types import Job, Target
from modelyard.kinds import JobKind
from modelyard.training.config import TrainConfig
from modelyard.training.sweep.config import SweepConfig

TARGET = Target(kind="model", name="cnn")


def trains(config: TrainConfig, inputs: Any, outputs: Any, context: Any) -> None:
    """The larger the lr the better, but above 0.5 it fails; where the seed is 7 the last epoch waits for the gate."""
    if config.lr > 0.5:
        raise Invalid("it diverged")
    for epoch in range(1, config.epochs + 1):
        while config.seed == 7 and epoch == config.epochs and not jobs_office.GATE.wait(0.005):
            context.check()
        context.metric(epoch, loss=1.0, select_accuracy=config.lr * (epoch / config.epochs))
        context.check()
    folder = context.work / "model"
    folder.mkdir()
    (folder / "lr").write_text(str(config.lr))
    outputs.publish("model", folder, task="t", metadata={"lr": config.lr})


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    jobs_office.GATE.clear()
    office = Office(tmp_path / "office", cpus=2)
    roles: dict[str, Any] = {"inputs": ("dataset",), "target": "model"}
    office.kinds.add("train", JobKind("train", TrainConfig, f"{__name__}:trains", gang=True, **roles))
    office.kinds.add("sweep", JobKind("sweep", SweepConfig, "modelyard.training.sweep.run:run", rejoins=True, **roles))
    office.dataset(tmp_path / "digits")
    yield office
    office.close()


def submit(office: Office, space: Any, **config: Any) -> Job:
    full = {"space": space, "parallel": 1, "train": {"epochs": 3}, **config}
    return office.submit("sweep", config=full, inputs={"dataset": "dataset:digits"}, target=TARGET)


def trials(office: Office, job: str) -> list[dict[str, Any]]:
    return [fact for name, fact in sorted(office.job(job).facts.get("0", {}).items()) if name.startswith("trial ")]


def children(office: Office, job: str) -> list[Job]:
    with office.db.read() as session:
        return [one for one in service.jobs(session, "team") if one.parent == job][::-1]


def test_the_best_trial_becomes_the_version_and_a_failed_one_is_only_that(office: Office) -> None:
    job = submit(office, {"lr": [0.1, 0.4, 0.9]}, factor=16)
    (ended,) = office.finish(job.id)
    assert ended.state.value == "succeeded", ended.error
    rows = trials(office, job.id)
    states = {row["parameters"]["lr"]: row["state"] for row in rows}
    assert (states[0.4], states[0.9]) == ("succeeded", "failed")
    with office.db.read() as session:
        (version,) = catalogue.versions(session, "team", "model", "cnn")
    chosen = next(row for row in rows if row["parameters"]["lr"] == 0.4)
    assert (version.job, version.aliases, version.metadata["lr"]) == (chosen["job"], ("best",), 0.4)
    about = {"job": job.id, "trial": chosen["number"], "parameters": {"lr": 0.4}}
    assert version.metadata["sweep"] == about | {"metric": "select_accuracy", "score": 0.4, "trials": 3}
    report = next(output for output in ended.outputs if output["name"] == "report")
    folder = office.artefacts.local("team", report["hash"])
    assert sorted(path.name for path in folder.iterdir()) == ["sweep.json", "sweep.png", "sweep.svg"]
    assert [row["parameters"] for row in json.loads((folder / "sweep.json").read_text())["table"]] == [
        r["parameters"] for r in rows
    ]


def test_a_hopeless_trial_is_stopped(office: Office) -> None:
    """Each waits before its last epoch, so that whoever is worse than the first can be stopped in time."""
    job = submit(office, {"lr": [0.4, 0.1]}, train={"epochs": 4, "seed": 7}, seed=2, parallel=None)
    office.until(lambda: "stopped" in [row["state"] for row in trials(office, job.id)])
    jobs_office.GATE.set()
    (ended,) = office.finish(job.id)
    states = {row["parameters"]["lr"]: row["state"] for row in trials(office, job.id)}
    assert states == {0.4: "succeeded", 0.1: "stopped"}
    assert ended.state.value == "succeeded"


def test_a_sweep_that_was_lost_goes_on_and_repeats_nothing(office: Office) -> None:
    job = submit(office, {"lr": [0.1, 0.2, 0.3]}, train={"epochs": 3, "seed": 7}, parallel=None, grace=3)
    office.until(lambda: len(children(office, job.id)) == 2)
    office.until(lambda: office.job(children(office, job.id)[0].id).state.value == "running")
    office.scheduler._active[job.id].handle._end(Crashed("its node went away"))  # type: ignore[union-attr]
    office.until(lambda: office.job(job.id).state.value == "queued")
    jobs_office.GATE.set()
    (ended,) = office.finish(job.id)
    assert ended.state.value == "succeeded", ended.error
    assert ended.attempt == 2
    lrs = [child.config["lr"] for child in children(office, job.id)]
    assert sorted(lrs) == [0.1, 0.2, 0.3]
    assert [row["parameters"]["lr"] for row in trials(office, job.id)] == lrs


def test_where_all_trials_fail_the_sweep_does(office: Office) -> None:
    job = submit(office, {"lr": [0.7, 0.8]})
    (ended,) = office.finish(job.id)
    assert ended.error is not None
    assert ended.error["message"] == "None of 2 trials came to its end. The first that failed: it diverged"


def test_a_metric_that_is_not_told_is_an_error(office: Office) -> None:
    job = submit(office, {"lr": [0.1, 0.2]}, metric="select_f1")
    (ended,) = office.finish(job.id)
    assert ended.error is not None
    assert ended.error["message"] == "The trials tell no metric 'select_f1'; they tell loss, select_accuracy."
