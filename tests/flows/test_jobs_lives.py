"""Jobs from submission to the books, all real but HTTP: what succeeds, what is lost and found again, what is refused."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_bench import Bench, bench, eventually
from sqlalchemy import select

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.lineage import lineage
from modelyard.jobs import service
from modelyard.jobs.types import Job, State, Target
from modelyard.tenancy import ledger
from modelyard.tenancy.tables import Usage


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path / "yard") as yard:
        yield yard


def test_a_job_makes_a_version_with_lineage_usage_and_audit(yard: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("a")
    given = yard.artefact(source)
    first = yard.run(
        "copy", inputs={"files": f"artefact:{given}"}, text="one", number=3, target=Target(kind="dataset", name="d")
    )
    job = yard.run("copy", inputs={"files": "dataset:d@best"}, text="two", number=7, target=Target(kind="model", name="m"))
    assert job.state is State.succeeded, yard.log(job.id)
    assert job.inputs == {"files": "dataset:d@1"}
    with yard.db.read() as session:
        version = catalogue.resolve(session, "team", "model", "m@best")
        tree = lineage(session, "team", version)
        used = ledger.usage(session, "team", group_by=("kind", "subject", "version"))
        audit = [(row["action"], row["subject"]) for row in ledger.audit_log(session, "team")]
    assert (version.number, version.task, version.metadata, version.job) == (1, "text-generation", {"note": "two"}, job.id)
    assert job.outputs == [{"name": "copy", "reference": "m@1", "hash": version.artefact, "alias": "best"}]
    folder = yard.artefacts.local("team", version.artefact)
    assert ((folder / "a.txt").read_text(), (folder / "note.txt").read_text()) == ("a", "two")
    assert tree["parents"][0]["reference"] == "d@1"
    assert tree["parents"][0]["parents"][0]["hash"] == given
    counts = {row["subject"]: (row["kind"], row["version"], row["calls"], row["units"], row["errors"]) for row in used}
    assert counts == {first.id: ("job", "d@1", 1, 3, 0), job.id: ("job", "m@1", 1, 7, 0)}
    assert all(row["cpu_seconds"] > 0 for row in used)
    assert {("job.submit", job.id), ("job.succeeded", job.id)} <= set(audit)
    states = [e["state"] for e in yard.events(job.id) if e["type"] == "state"]
    assert states == ["queued", "starting", "running", "succeeded"]
    eventually(lambda: not list(yard.settings.jobs.iterdir()))


def _launcher(rank: int) -> int:
    """The parent of a rank's process: nothing inside of the sandbox can kill it."""
    return int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_lost_gang_goes_on_from_its_checkpoint(yard: Bench, victim: str) -> None:
    asked = yard.submit("counts", number=5, rank=3, text=victim)
    if victim == "launcher":
        yard.until(lambda: yard.job(asked).facts.get("0", {}).get("counted") == 3)
        os.kill(_launcher(yard.job(asked).pids[0]), signal.SIGKILL)
    (job,) = yard.finish(asked)
    assert (job.state, job.attempt) == (State.succeeded, 2), yard.log(job.id)
    said = yard.log(job.id).splitlines()
    assert (said[0], said[-1]) == ("begins at 0", "begins at 3")
    assert "attempt 1 was lost and is started again" in said[1]
    with yard.db.read() as session:
        (used,) = ledger.usage(session, "team", group_by=("subject",))
    assert (used["calls"], used["errors"], used["units"]) == (1, 1, 5)
    assert abs(used["cpu_us"] - job.cpu_us) <= 1
    eventually(lambda: not [k for k in (yard.settings.data / "store").rglob("*") if "checkpoints" in k.parts and k.is_file()])


def test_a_lost_gang_goes_on_in_its_place_and_finds_nothing_of_what_it_left(yard: Bench) -> None:
    """Its launcher, which has loaded everything, is there still; files, memory and processes of the first life are not."""
    job = yard.run("litters", text="mine", target=Target(kind="model", name="m"))
    assert (job.state, job.attempt) == (State.succeeded, 2), yard.log(job.id)
    first, second = (line for line in yard.log(job.id).splitlines() if line.startswith("begins"))
    assert first == second
    with yard.db.read() as session:
        assert catalogue.resolve(session, "team", "model", "m").metadata == {"note": "mine"}
    eventually(lambda: not list(yard.settings.jobs.iterdir()))


@pytest.mark.parametrize("how", [State.cancelled, State.failed])
def test_a_launcher_that_waits_for_a_life_that_never_comes_is_let_go(yard: Bench, how: State) -> None:
    job = yard.submit("dies")
    if how is State.cancelled:
        yard.until(lambda: yard.scheduler._parked)
        yard.cancel(job)
    (ended,) = yard.finish(job)
    assert ended.state is how
    yard.until(lambda: not yard.scheduler._parked)
    eventually(lambda: all(process["exit"] is not None for process in yard.executor.processes().values()))
    eventually(lambda: not list(yard.settings.jobs.iterdir()))


def _book(yard: Bench, job: str) -> dict[str, tuple[int, int, int]]:
    """A job's entries in the ledger by attempt: units, microseconds, errors."""
    with yard.db.read() as session:
        rows = session.scalars(select(Usage).where(Usage.subject == job)).all()
        return {row.source.rpartition(":")[2]: (row.units, row.cpu_us, row.errors) for row in rows}


def _worked(yard: Bench, job: str, attempt: int) -> bool:
    found = yard.job(job)
    before = sum(cpu_us for _, cpu_us, _ in _book(yard, job).values())
    counted = [facts.get("samples", 0) for facts in found.facts.values()]
    return found.attempt == attempt and len(counted) == 2 and min(counted) >= 20 and found.cpu_us - before > 500_000


def test_what_every_attempt_did_is_in_the_ledger(yard: Bench) -> None:
    """A rank is killed, then control, then the job is cancelled: three attempts, three entries, nothing counted twice."""
    job = yard.submit("works", ranks=2)
    yard.until(lambda: _worked(yard, job, 1))
    os.kill(yard.job(job).pids[1], signal.SIGKILL)
    yard.until(lambda: _worked(yard, job, 2))
    seen = yard.job(job)
    yard.lose_control()
    yard.start()
    assert yard.job(job).cpu_us >= seen.cpu_us
    yard.until(lambda: _worked(yard, job, 3))
    yard.cancel(job)
    (ended,) = yard.finish(job)
    book = _book(yard, job)
    assert [(attempt, errors) for attempt, (_, _, errors) in sorted(book.items())] == [("1", 1), ("2", 1), ("3", 0)]
    assert all(units >= 40 and cpu_us >= 500_000 for units, cpu_us, _ in book.values()), book
    assert book["2"][0] >= sum(facts["samples"] for facts in seen.facts.values())
    assert book["3"][0] == sum(facts["samples"] for facts in ended.facts.values())
    assert ended.cpu_us == sum(cpu_us for _, cpu_us, _ in book.values())


def test_a_job_out_of_time_is_charged_for_what_it_did(yard: Bench) -> None:
    job = yard.run("works", timeout=2)
    assert (job.state, job.error and job.error["code"]) == (State.failed, "timed_out")
    assert _book(yard, job.id) == {"1": (job.facts["0"]["samples"], job.cpu_us, 1)}
    assert job.facts["0"]["samples"] > 10


def test_a_gang_that_dies_every_time_fails_at_last(yard: Bench) -> None:
    job = yard.run("dies")
    assert (job.state, job.attempt) == (State.failed, 1 + yard.settings.job_restarts)
    assert job.error is not None
    assert job.error["code"] == "crashed"


def test_a_new_control_takes_over(yard: Bench) -> None:
    job = yard.submit("waits", ranks=2)
    pids = yard.until(lambda: yard.job(job).pids)
    yard.lose_control()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert yard.job(job).state is State.running
    yard.start()
    assert yard.job(job).state is State.queued
    again = yard.until(lambda: yard.job(job).state is State.running and yard.job(job).pids)
    assert (yard.job(job).attempt, set(again) & set(pids)) == (2, set())
    yard.cancel(job)
    assert yard.finish(job)[0].state is State.cancelled


def test_control_that_ends_four_times_costs_a_job_no_restart(tmp_path: Path) -> None:
    with bench(tmp_path, job_restarts=0) as yard:
        job = yard.submit("works", number=10)
        for attempt in range(1, 5):
            yard.until(lambda n=attempt: yard.job(job).attempt == n and yard.job(job).pids)
            yard.lose_control()
            yard.start()
        (ended,) = yard.finish(job)
        assert (ended.state, ended.attempt, ended.abandoned) == (State.succeeded, 5, 4), yard.log(job)
        assert sorted(_book(yard, job)) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("killer", ["nobody we know", "control"])
def test_a_gang_that_was_killed_before_control_went_counts_unless_it_was_told_to_end(tmp_path: Path, killer: str) -> None:
    with bench(tmp_path, job_restarts=0) as yard:
        job = yard.submit("waits")
        (pid,) = yard.until(lambda: yard.job(job).pids)
        token = yard.job(job).token
        if killer == "control":
            yard.scheduler.close()
        else:
            os.kill(_launcher(pid), signal.SIGKILL)
        eventually(lambda: yard.executor.processes()[token or ""]["exit"] == -signal.SIGKILL)
        yard.lose_control()
        yard.start()
        found = yard.job(job)
        if killer == "control":
            assert (found.state, found.abandoned) == (State.queued, 1)
        else:
            assert (found.state, found.abandoned) == (State.failed, 0)
            assert found.error is not None
            assert "killed by signal 9" in found.error["message"]


def test_a_gang_that_does_not_notice_is_ended_by_the_new_control(yard: Bench) -> None:
    job = yard.submit("waits")
    (pid,) = yard.until(lambda: yard.job(job).pids)
    os.kill(_launcher(pid), signal.SIGSTOP)
    yard.lose_control()
    time.sleep(0.3)
    assert Path(f"/proc/{pid}").exists()
    yard.start()
    eventually(lambda: not Path(f"/proc/{pid}").exists())


def test_what_a_lost_attempt_says_counts_for_nothing(yard: Bench) -> None:
    """Two controls at once: the first has lost the job's lease and notices at its next word."""
    job = yard.submit("waits")
    (pid,) = yard.until(lambda: yard.job(job).pids)
    first = yard.scheduler
    yard.start()
    yard.until(lambda: yard.job(job).attempt == 2 and yard.job(job).pids)
    first.tick()
    assert yard.job(job).attempt == 2
    yard.cancel(job)
    assert yard.finish(job)[0].state is State.cancelled
    eventually(lambda: (first.tick(), not Path(f"/proc/{pid}").exists())[1])
    first._executor.close()  # type: ignore[attr-defined]
    first.close()


def test_queued_and_running_jobs_are_cancelled(yard: Bench) -> None:
    running = yard.submit("waits", ranks=4)
    queued = yard.submit("waits", ranks=4)
    yard.until(lambda: "waiting" in yard.log(running))
    assert yard.job(queued).why == "waits for 4 CPUs, 0 of 4 are free; 1st"
    yard.cancel(queued)
    assert (yard.job(queued).state, yard.job(queued).attempt) == (State.cancelled, 0)
    yard.cancel(running)
    assert yard.finish(running)[0].state is State.cancelled
    with yard.db.read() as session:
        errors = [row["errors"] for row in ledger.usage(session, "team", group_by=("subject",))]
    assert errors == [0], yard.log(running)


def test_children_run_in_the_place_of_their_waiting_parent(tmp_path: Path) -> None:
    with bench(tmp_path, job_cpus=1) as yard:
        job = yard.run("parent", number=2)
        assert job.state is State.succeeded, yard.log(job.id)
        assert job.facts["0"]["ends"] == ["succeeded", "succeeded"]
        children = [yard.job(child) for child in job.facts["0"]["children"]]
        assert {child.parent for child in children} == {job.id}


def test_children_end_with_their_parent(yard: Bench) -> None:
    job = yard.submit("parent", number=1, text="waits")
    child = yard.until(lambda: next((e.id for e in _jobs(yard) if e.parent == job and e.state is State.running), None))
    yard.cancel(job)
    ended = yard.finish(job, child)
    assert [one.state for one in ended] == [State.cancelled, State.cancelled]


def _jobs(yard: Bench) -> list[Job]:
    with yard.db.read() as session:
        return service.jobs(session, "team")


@pytest.mark.parametrize("text", ["link", "/etc", "work/../../.."])
def test_only_what_lies_in_the_work_folder_is_taken(yard: Bench, text: str) -> None:
    job = yard.run("links", text=text)
    assert job.state is State.failed
    assert job.error is not None
    assert job.error["code"] == "invalid_request"
    assert job.outputs == []


def test_an_alias_that_is_none_fails_the_job_and_registers_nothing(yard: Bench) -> None:
    job = yard.run("badly_aliased", target=Target(kind="model", name="m"))
    assert (job.state, job.outputs) == (State.failed, [])
    assert job.error is not None
    assert "is no alias" in job.error["message"]
    with yard.db.read() as session:
        assert catalogue.names(session, "team", "model") == []


def test_a_damaged_input_is_refused_before_anything_starts(yard: Bench, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("the truth")
    given = yard.artefact(source)
    (blob,) = [p for p in (yard.settings.data / "store").rglob("*") if p.is_file() and p.read_bytes() == b"the truth"]
    blob.chmod(0o600)
    blob.write_bytes(b"not truth")
    job = yard.run("copy", inputs={"files": f"artefact:{given}"})
    assert (job.state, job.error and job.error["code"]) == (State.failed, "damaged")
    assert [e["type"] for e in yard.events(job.id)] == ["state"] * 3


def test_many_jobs_share_the_processors(yard: Bench) -> None:
    jobs = [yard.submit("copy", number=1, ranks=1 + n % 3) for n in range(9)]
    assert {job.state for job in yard.finish(*jobs)} == {State.succeeded}
