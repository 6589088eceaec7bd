"""What a parent may ask about its children: to watch them, to stop one, take what one made for its own; and nobody else's."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jobs_office
import pytest
from jobs_office import Office, Plan

from modelyard.catalogue import service as catalogue
from modelyard.errors import Crashed, NotFound
from modelyard.jobs import service
from modelyard.jobs.types import Amount, Node, Target
from modelyard.kinds import JobKind

# What 'measures' waits for between its two metrics.
SECOND = threading.Event()


def measures(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    context.metric(1, loss=0.5)
    while not SECOND.wait(0.005):
        context.check()
    context.metric(2, loss=0.25)
    folder = context.work / "out"
    folder.mkdir()
    (folder / "weights").write_text(config.text)
    outputs.publish("model", folder, task="t", metadata={"curve": [1]})


def watches(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Watch one child to its end, from wherever an earlier life left it; then take what it made."""
    child = context.latest() and (context.latest() / "child").read_text()
    if not child:
        child = context.submit("measures", {"text": "w"}, {})
        folder = context.work / "kept"
        folder.mkdir()
        (folder / "child").write_text(child)
        context.checkpoint(1, folder)
    heard: list[Any] = []
    while not heard or heard[-1].get("state") not in ("succeeded", "cancelled"):
        told = context.watch({child: heard[-1]["seq"] if heard else 0})
        assert list(told) == [child]
        heard += told[child]
        context.report(heard=[event.get("state") or event["values"] for event in heard])
        if config.text == "stop" and heard[-1]["type"] == "metric":
            context.stop(child)
    context.wait(child)
    if config.text != "stop":
        folder = context.work / "report"
        folder.mkdir()
        (folder / "table").write_text("t")
        outputs.adopt("best", child, "model", metadata={"trial": 3}, alias="best")
        outputs.publish("report", folder, version=False)


def meddles(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    said = []
    for ask in (lambda: context.stop(config.text), lambda: outputs.adopt("x", config.text, "out", metadata={})):
        with pytest.raises(NotFound) as refused:
            ask()
        said.append(str(refused.value))
    context.report(said=said, watched=context.watch({config.text: 0}))


def adopts_nothing(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    child = context.submit("refuses", {"text": "no"}, {})
    context.wait(child)
    outputs.adopt("x", child, "model", metadata={})


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    SECOND.clear()
    jobs_office.GATE.clear()
    office = Office(tmp_path, cpus=1)
    for run in (measures, watches, meddles, adopts_nothing):
        kind = JobKind(run.__name__, Plan, f"{__name__}:{run.__name__}", target="model" if run is watches else None)
        office.kinds.add(run.__name__, kind)
    office.kinds.add("rejoins", JobKind("rejoins", Plan, f"{__name__}:watches", target="model", rejoins=True))
    yield office
    SECOND.set()
    office.close()


def heard(office: Office, job: str) -> list[Any]:
    return office.job(job).facts.get("0", {}).get("heard", [])


def children(office: Office, job: str) -> list[Any]:
    with office.db.read() as session:
        return [one for one in service.jobs(session, "team") if one.parent == job]


LIFE = ["queued", "starting", "running", {"loss": 0.5}, {"loss": 0.25}, "succeeded"]


def test_a_parent_that_watches_holds_no_processor_and_hears_everything_in_order(office: Office) -> None:
    job = office.submit("watches", target=Target(kind="model", name="cnn"))
    office.until(lambda: {"loss": 0.5} in heard(office, job.id))  # on one processor: the parent has let go of it
    SECOND.set()
    (ended,) = office.finish(job.id)
    assert ended.state.value == "succeeded", ended.error
    assert heard(office, job.id) == LIFE


def test_an_adopted_output_is_a_version_that_the_child_made_and_a_report_is_none(office: Office) -> None:
    SECOND.set()
    job = office.submit("watches", target=Target(kind="model", name="cnn"))
    (ended,) = office.finish(job.id)
    (child,) = children(office, job.id)
    with office.db.read() as session:
        (version,) = catalogue.versions(session, "team", "model", "cnn")
    assert (version.job, version.task, version.aliases) == (child.id, "t", ("best",))
    assert version.metadata == {"curve": [1], "trial": 3}
    assert version.artefact == child.outputs[0]["hash"]
    assert [(one["name"], one["reference"]) for one in ended.outputs] == [("best", "cnn@1"), ("report", None)]


def test_a_child_that_is_stopped_is_cancelled_and_its_parent_goes_on(office: Office) -> None:
    job = office.submit("watches", config={"text": "stop"}, target=Target(kind="model", name="cnn"))
    (ended,) = office.finish(job.id)
    assert ended.state.value == "succeeded", ended.error
    assert heard(office, job.id)[-1] == "cancelled"


def test_nobody_elses_job_is_stopped_adopted_or_seen(office: Office) -> None:
    stranger = office.submit("makes")
    office.finish(stranger.id)
    job = office.submit("meddles", config={"text": stranger.id})
    (ended,) = office.finish(job.id)
    assert all("is no child of this job" in line for line in ended.facts["0"]["said"])
    assert ended.facts["0"]["watched"] == {}
    assert office.job(stranger.id).state.value == "succeeded"


def test_of_a_child_that_failed_nothing_can_be_adopted(office: Office) -> None:
    job = office.submit("adopts_nothing")
    (ended,) = office.finish(job.id)
    assert ended.error is not None
    assert "is failed and has no output 'model' to adopt" in ended.error["message"]


@pytest.mark.parametrize(("kind", "goes_on"), [("rejoins", True), ("watches", False)])
def test_children_go_on_without_a_parent_that_rejoins_them(office: Office, kind: str, goes_on: bool) -> None:
    job = office.submit(kind, target=Target(kind="model", name="cnn"))
    office.until(lambda: {"loss": 0.5} in heard(office, job.id))
    active = office.scheduler._active[job.id]
    active.handle._end(Crashed("its node went away"))  # type: ignore[union-attr]
    office.until(lambda: office.job(job.id).state.value == "queued")  # on one processor, which its child has
    (child,) = children(office, job.id)
    assert child.cancelling is not goes_on or child.state.value == "cancelled"
    SECOND.set()
    office.finish(job.id)
    assert len(children(office, job.id)) == 1
    assert (heard(office, job.id) == LIFE) is goes_on


def test_a_cluster_is_asked_for_its_nodes_before_the_database_is_held(office: Office) -> None:
    job = office.submit("parent")
    seen = office.nodes_apart()
    (ended,) = office.finish(job.id)
    assert ended.state.value == "succeeded", ended.error
    assert len(seen) > 1
    assert not any(seen)


def test_who_only_watches_takes_no_gpu_and_its_children_do(office: Office) -> None:
    office.executor._nodes = (Node("local", Amount(4, 1, 64 << 30)),)
    asked = {"resources": {"gpus": 1}, "target": Target(kind="model", name="cnn")}
    other = office.submit("holds", resources={"gpus": 1})
    office.until(lambda: office.job(other.id).state.value == "running")
    job = office.submit("rejoins", **asked)
    office.until(lambda: heard(office, job.id))  # though the only GPU is another's
    assert heard(office, job.id) == ["queued"]
    assert (children(office, job.id)[0].resources.gpus, office.job(job.id).resources.gpus) == (1, 1)
    SECOND.set()
    jobs_office.GATE.set()
    office.until(lambda: children(office, job.id)[0].id in office.scheduler._active)
    preparing = {one.job.id: one.preparing for one in office.scheduler._active.values()}
    mine, child = (preparing[name].result(10).each.gpus for name in (job.id, children(office, job.id)[0].id))  # type: ignore[union-attr]
    assert (mine, child) == (0, 1)
    office.finish(job.id, other.id)
