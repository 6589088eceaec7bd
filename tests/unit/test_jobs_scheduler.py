"""The scheduler's turns over an executor without processes: what is written, what is tried again, what is never done twice."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_office import GATE, Office, Plan
from sqlalchemy.exc import OperationalError

from modelyard.catalogue import service as catalogue
from modelyard.db import now
from modelyard.errors import Crashed, Unavailable
from modelyard.jobs import desk, endings, service
from modelyard.jobs.shares import Shares
from modelyard.jobs.tables import ShareRow
from modelyard.jobs.types import Event, State
from modelyard.kinds import JobKind
from modelyard.storage import Artefacts
from modelyard.tenancy import ledger
from modelyard.tenancy.types import Principal, Scope
from modelyard.testing import InlineExecutor

ADMIN, OTHER = Principal("default", "key0", Scope.admin), Principal("other", "key2", Scope.write)


def usage(office: Office) -> list[tuple[int, int, int]]:
    with office.db.read() as session:
        return [(row["calls"], row["units"], row["errors"]) for row in ledger.usage(session, "team", group_by=("subject",))]


def test_success_writes_everything_at_once(office: Office) -> None:
    job = office.submit("makes", config={"text": "best", "number": 4}, target={"kind": "model", "name": "m"})
    (job,) = office.finish(job.id)
    assert (job.state, job.attempt, job.token, job.error, job.why) == (State.succeeded, 1, None, None, None)
    with office.db.read() as session:
        version = catalogue.resolve(session, "team", "model", "m@best")
    assert job.outputs == [{"name": "out", "reference": "m@1", "hash": version.artefact, "alias": "best"}]
    assert version.job == job.id
    assert usage(office) == [(1, 4, 0)]
    assert office.said(job.id, "state", "state") == ["queued", "starting", "running", "succeeded"]
    assert [event["seq"] for event in office.events(job.id)] == list(range(1, job.events + 1))


def test_without_a_target_outputs_stay_artefacts(office: Office) -> None:
    (job,) = office.finish(office.submit("makes").id)
    assert [(output["name"], output["reference"]) for output in job.outputs] == [("out", None)]
    assert office.artefacts.manifest("team", job.outputs[0]["hash"]).files


def test_what_the_catalogue_refuses_fails_the_job_and_nothing_is_left_of_it(office: Office) -> None:
    (job,) = office.finish(office.submit("makes", config={"text": "No Alias!"}, target={"kind": "model", "name": "m"}).id)
    assert (job.state, job.error and job.error["code"]) == (State.failed, "invalid_request")
    with office.db.read() as session:
        assert catalogue.names(session, "team", "model") == []
    assert usage(office) == [(1, 0, 1)]


def test_an_error_of_the_job_is_its_error(office: Office) -> None:
    (job,) = office.finish(office.submit("refuses", config={"text": "not like this"}).id)
    assert job.error == {"code": "invalid_request", "message": "not like this"}
    assert [event.get("error") for event in office.events(job.id)][-1] == job.error


def test_a_lost_gang_is_started_again_from_its_checkpoint_until_it_is_enough(office: Office) -> None:
    job = office.submit("counts").id
    for attempt in (1, 2, 3, 4):  # the first came further than any before, the others did not
        office.until(lambda n=attempt: office.said(job, "log", "text").count("kept") == n)
        office.scheduler._active[job].handle.kill()  # type: ignore[union-attr]
    (ended,) = office.finish(job)
    assert (ended.state, ended.attempt, ended.error and ended.error["code"]) == (State.failed, 4, "crashed")
    begun = [text for text in office.said(job, "log", "text") if text.startswith("begins")]
    assert begun == ["begins at 0", *["begins at 5"] * 3]
    assert usage(office) == [(1, 0, 4)]
    office.until(lambda: not list(office.settings.jobs.iterdir()))
    assert [key for key in office.store.objects if "checkpoints" in key and key.endswith("latest.json")]


def test_a_new_control_queues_again_what_ran(office: Office) -> None:
    job = office.submit("holds").id
    office.until(lambda: office.job(job).state is State.running)
    first = office.scheduler
    office.begin()
    assert (office.job(job).state, office.job(job).token) == (State.queued, None)
    office.until(lambda: office.job(job).state is State.running)
    lease = office.job(job).token
    GATE.set()
    first._active[job].said.append(("log", {"rank": 0, "text": "too late"}))
    first.tick()
    assert job not in first._active
    (ended,) = office.finish(job)
    assert (ended.state, ended.attempt) == (State.succeeded, 2)
    assert lease is not None
    assert "too late" not in office.said(job, "log", "text")
    first.close()


def test_control_may_end_often_under_a_job_but_not_for_ever(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "MOST_ABANDONED", office.settings.job_restarts + 3)
    job, gone = office.submit("holds").id, []
    for times in range(1, office.settings.job_restarts + 4):
        office.until(lambda: office.job(job).state is State.running)
        gone.append(office.scheduler)
        office.begin()
        assert (office.job(job).state, office.job(job).abandoned) == (State.queued, times)
    office.until(lambda: office.job(job).state is State.running)
    gone.append(office.scheduler)
    office.begin()
    ended = office.job(job)
    assert (ended.state, ended.error and ended.error["code"]) == (State.failed, "crashed")
    assert ended.error is not None
    assert f"times it did so far: {len(gone)}" in ended.error["message"]
    for first in gone:
        first.close()


def test_a_gang_that_died_while_no_control_was_there_counts(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    job = office.submit("holds").id
    for attempt in range(1, office.settings.job_restarts + 2):
        office.until(lambda: office.job(job).state is State.running)
        first, token = office.scheduler, office.job(job).token
        monkeypatch.setattr(InlineExecutor, "end_gangs", lambda _, token=token: {token: Crashed("killed by signal 9")})
        office.begin()
        first.close()
        assert (office.job(job).attempt, office.job(job).abandoned) == (attempt, 0)
    assert office.job(job).state is State.failed


def test_a_new_control_ends_what_was_being_cancelled(office: Office) -> None:
    job = office.submit("holds").id
    office.until(lambda: office.job(job).state is State.running)
    office.cancel(job)
    first = office.scheduler
    office.begin()
    assert office.job(job).state is State.cancelled
    first.close()


def test_cancel_in_every_state(office: Office) -> None:
    jobs = [office.submit("holds", ranks=4).id for _ in range(2)]
    assert office.cancel(jobs[1]).state is State.cancelled
    office.until(lambda: office.job(jobs[0]).state is State.running)
    assert office.cancel(jobs[0]).state is State.running
    (ended,) = office.finish(jobs[0])
    assert (ended.state, ended.error) == (State.cancelled, None)
    assert office.cancel(jobs[0]).state is State.cancelled


def test_who_waits_is_told_why(office: Office) -> None:
    office.submit("holds", ranks=3)
    second, third = (office.submit("holds", ranks=3).id for _ in range(2))
    office.until(lambda: office.job(third).why)
    assert office.job(second).why == "waits for 3 CPUs, 1 of 4 is free; 1st"
    assert office.job(third).why == "waits for 3 CPUs, 1 of 4 is free; 2nd"


def test_a_job_of_higher_priority_sends_one_back_to_its_checkpoint(office: Office) -> None:
    low = office.submit("counts", resources={"cpus": 4}, timeout=1000.0).id
    office.until(lambda: "kept" in office.said(low, "log", "text"))
    high = office.submit("begins", ADMIN, ranks=4, priority=5).id
    office.until(lambda: high_runs(office, high))
    waits = office.job(low)
    assert (waits.state, waits.attempt, waits.started) == (State.queued, 1, None)
    assert waits.timeout == 1000
    assert 0 < waits.spent < 100  # what it waits from now on is not its time
    assert any("made room for a job of higher priority" in text for text in office.said(low, "log", "text"))
    office.until(
        lambda: (
            office.job(low).why == "waits for 4 CPUs, 0 of 4 are free; 1st; project team has used 0 % of its share; "
            "it made room for a job of higher priority and goes on from its checkpoint"
        )
    )
    assert (office.job(low).abandoned, office.job(low).preempted) == (0, 1)  # no attempt lost
    GATE.set()
    assert office.finish(low)[0].attempt == 2
    assert "begins at 5" in office.said(low, "log", "text")
    with office.db.read() as session:
        assert service.get(session, "default", high).state is State.succeeded


def high_runs(office: Office, job: str) -> bool:
    with office.db.read() as session:
        return service.get(session, "default", job).state is State.running


def test_without_a_checkpoint_nobody_is_sent_back(office: Office) -> None:
    low = office.submit("begins", ranks=4).id
    office.until(lambda: office.said(low, "log", "text").count("begins") == 4)
    high = office.submit("holds", ADMIN, ranks=4, priority=5).id
    office.until(lambda: office.waits_as(high, "default") == 1)
    assert office.job(low).state is State.running
    with office.db.read() as session:
        why = service.get(session, "default", high).why or ""
    assert why.endswith("what runs below its priority has no checkpoint to go back to yet, or children")


def test_projects_take_turns_and_what_they_held_is_kept(office: Office) -> None:
    first = office.submit("begins", ranks=4).id
    office.until(lambda: office.job(first).state is State.running)
    mine, theirs = office.submit("holds", ranks=4).id, office.submit("holds", OTHER, ranks=4).id
    office.until(lambda: office.waits_as(theirs, "other") == 1 and office.waits_as(mine) == 2)
    assert "project team has used 200 % of its share" in (office.job(mine).why or "")
    with office.db.begin() as session:
        session.add(ShareRow(project="other", cpus=3.0, gpus=0.0, memory=0.0, at=now()))
    shares = Shares(3600.0)
    with office.db.read() as session:
        shares.load(session)
    assert shares.past["other"][0] == pytest.approx(3.0, rel=1e-3)


def test_a_parent_makes_room_for_its_child(tmp_path: Path) -> None:
    office = Office(tmp_path, cpus=1)
    (job,) = office.finish(office.submit("parent").id)
    assert job.state is State.succeeded
    result = job.facts["0"]["child"]
    assert (result["state"], result["error"], result["facts"]) == ("succeeded", None, {"0": {"samples": 3}})
    assert [output["name"] for output in result["versions"]] == ["out"]
    office.close()


def test_a_child_has_its_parents_limits(office: Office) -> None:
    (ended,) = office.finish(office.submit("parent", timeout=300.0, max_restarts=7, priority=-3).id)
    (child,) = [job for job in office.jobs() if job.parent == ended.id]
    assert (child.timeout, child.max_restarts, child.priority) == (300.0, 7, -3)


def test_a_job_that_is_no_child_cannot_be_waited_for(office: Office) -> None:
    other = office.submit("makes").id
    (job,) = office.finish(office.submit("stranger", config={"text": other}).id)
    assert (job.state, job.error and job.error["code"]) == (State.failed, "not_found")


def test_a_child_of_an_unknown_kind_is_refused_in_its_parent(office: Office) -> None:
    (job,) = office.finish(office.submit("parent", config={"text": "maks"}).id)
    assert job.error is not None
    assert job.error["code"] == "not_found"
    assert "Did you mean 'makes'?" in job.error["message"]


def test_a_database_that_is_away_loses_nothing(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failures = endings.succeed, [1, 2, 3]

    def succeed(*given: object, **more: object) -> None:
        if failures:
            failures.pop()
            raise OperationalError("COMMIT", {}, Exception("database is locked"))
        real(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(endings, "succeed", succeed)
    (job,) = office.finish(office.submit("makes", target={"kind": "model", "name": "m"}).id)
    assert (job.state, job.attempt, failures) == (State.succeeded, 1, [])
    with office.db.read() as session:
        assert len(catalogue.versions(session, "team", "model", "m")) == 1


def test_an_unexpected_error_fails_that_job_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    real = endings.succeed

    def succeed(session: object, active: object, **more: object) -> None:
        if active.job.id == bad:  # type: ignore[attr-defined]
            raise RuntimeError("a bug, with /a/secret/path")
        real(session, active, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(endings, "succeed", succeed)
    bad, good = office.submit("makes").id, office.submit("makes").id
    failed, succeeded = office.finish(bad, good)
    assert (failed.state, failed.error and failed.error["code"]) == (State.failed, "internal")
    assert "secret" not in str(failed.error)
    assert succeeded.state is State.succeeded


def test_a_gang_that_cannot_be_started_is_tried_again(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = office.executor.start_gang, []

    def start(gang: object, instead: object = None) -> object:
        tries.append(gang)
        if len(tries) == 1:
            raise Unavailable("the supervisor is away")
        return real(gang)  # type: ignore[arg-type]

    monkeypatch.setattr(office.executor, "start_gang", start)
    (job,) = office.finish(office.submit("makes").id)
    assert (job.state, job.attempt) == (State.succeeded, 2)


def test_a_missing_input_fails_the_job_before_it_starts(office: Office, tmp_path: Path) -> None:
    digest = office.dataset(tmp_path / "d")
    for key in [key for key in office.store.objects if digest in key]:
        office.store.delete(key)
    (job,) = office.finish(office.submit("makes", inputs={"base": "dataset:digits"}).id)
    assert (job.state, job.error and job.error["code"]) == (State.failed, "not_found")


def test_nonsense_from_a_gang_ends_it(office: Office) -> None:
    job = office.submit("holds").id
    office.until(lambda: office.job(job).state is State.running)
    office.scheduler._active[job].handle._say(Event("progress", {"done": "many"}))  # type: ignore[union-attr]
    (ended,) = office.finish(job)
    assert (ended.state, ended.attempt, ended.error and ended.error["code"]) == (State.failed, 1, "invalid_request")


def test_what_an_old_control_left_is_out_of_the_way_before_anything_starts(office: Office) -> None:
    job = office.submit("holds").id
    office.until(lambda: office.job(job).state is State.running)
    (office.settings.jobs / "an-ended-job" / "token" / "work").mkdir(parents=True)
    first = office.scheduler
    office.begin()
    assert not (office.settings.jobs / job).exists()
    office.until(lambda: office.job(job).state is State.running)
    assert [folder.name for folder in (office.settings.jobs / job).iterdir()] == [office.job(job).token]
    first.close()
    GATE.set()
    office.finish(job)
    office.until(lambda: not list(office.settings.jobs.iterdir()))


def test_checkpoints_that_a_killed_control_left_are_dropped_by_the_next(office: Office, tmp_path: Path) -> None:
    (job,) = office.finish(office.submit("makes").id)
    office.until(lambda: not list(office.settings.jobs.iterdir()))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "step").write_text("1")
    office.artefacts.put_checkpoint("team", job.id, tmp_path / "kept")
    (office.settings.jobs / f".{job.id}.aside" / "work").mkdir(parents=True)
    first = office.scheduler
    office.begin()
    office.until(lambda: not list(office.settings.jobs.iterdir()))
    assert not [key for key in office.store.objects if "checkpoints" in key]
    first.close()


def test_the_next_control_keeps_the_checkpoint_of_what_failed(office: Office, tmp_path: Path) -> None:
    (job,) = office.finish(office.submit("refuses", config={"text": "no"}).id)
    office.until(lambda: not list(office.settings.jobs.iterdir()))
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "step").write_text("1")
    office.artefacts.put_checkpoint("team", job.id, tmp_path / "kept")
    (office.settings.jobs / f".{job.id}.aside" / "work").mkdir(parents=True)
    first = office.scheduler
    office.begin()
    office.until(lambda: not list(office.settings.jobs.iterdir()))
    found = office.artefacts.latest_checkpoint("team", job.id, tmp_path / "found")
    assert found is not None
    assert (found / "step").read_text() == "1"
    first.close()


@pytest.fixture
def full_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A store that takes no checkpoint before the event is set."""
    takes, put = threading.Event(), Artefacts.put_checkpoint

    def late(*given: object, **named: object) -> object:
        assert takes.wait(20)
        return put(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Artefacts, "put_checkpoint", late)
    yield takes
    takes.set()


def test_long_uploads_keep_no_job_from_starting(tmp_path: Path, full_store: threading.Event) -> None:
    office = Office(tmp_path, cpus=32)
    try:
        GATE.clear()
        uploads = [office.submit("counts").id for _ in range(10)]
        office.until(lambda: all(office.said(job, "log", "text") for job in uploads))
        late = office.submit("begins").id
        office.until(lambda: office.said(late, "log", "text") == ["begins"])
        assert not any("kept" in office.said(job, "log", "text") for job in uploads)
    finally:
        full_store.set()
        office.close()


def persists(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Keep a checkpoint again and again, until one is kept."""
    folder = context.work / "kept"
    folder.mkdir()
    (folder / "step").write_text("1")
    for _ in range(1000):
        try:
            context.checkpoint(1, folder)
        except Unavailable as error:
            context.log(str(error))
            GATE.wait(0.02)
        else:
            return


def test_a_store_that_does_not_answer_is_given_up_and_written_to_by_one_at_a_time(
    office: Office, full_store: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    GATE.clear()
    monkeypatch.setattr(desk, "_STORING", 0.1)
    office.kinds.add("persists", JobKind("persists", Plan, f"{__name__}:persists"))
    job = office.submit("persists").id
    office.until(lambda: len(office.said(job, "log", "text")) > 2)
    first, second, *_ = office.said(job, "log", "text")
    assert first.startswith("The store did not take it within 0.1 s")
    assert second.startswith("The store still has not taken the checkpoint before")
    monkeypatch.setattr(desk, "_STORING", 20.0)
    full_store.set()
    (ended,) = office.finish(job)
    assert ended.state is State.succeeded
