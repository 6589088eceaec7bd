"""What users' code tries against its launcher, its sandbox and the machine: it is stopped and told of, or does nothing."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jobs_bench import Bench, bench, eventually, processes_with

from modelyard.jobs import sandbox
from modelyard.jobs.types import Job, State

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
MEMORY = 300_000_000


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("yard"), job_memory=MEMORY, job_heartbeat=2.0, job_restarts=0) as yard:
        yield yard


def failed(job: Job) -> tuple[str, str]:
    """The code and message of a job that failed at its first attempt."""
    assert (job.state, job.attempt) == (State.failed, 1), job
    assert job.error is not None
    return job.error["code"], job.error["message"]


def test_the_kernel_and_the_launcher_are_out_of_reach(yard: Bench) -> None:
    job = yard.run("breaks_out", ranks=1)
    assert job.state is State.succeeded, yard.log(job.id)
    facts = dict(job.facts["0"])
    assert facts.pop("others") == []
    assert {name: fact for name, fact in facts.items() if fact not in ("EPERM", "EACCES", "EROFS", "EBUSY")} == {}
    assert len(facts) == 12


def line(**message: Any) -> str:
    return json.dumps(message) + "\n"


@pytest.mark.parametrize(
    "said",
    [
        line(type="ended", ok=True, cancelled=False, error=None, signal=None, cpu_seconds=0),
        line(type="started", pids=[1]),
        line(type="rank", rank=0),
        line(type="submit"),
        "{" * 5000 + "\n",
    ],
    ids=["ended", "started", "rank", "ask", "nonsense"],
)
def test_what_no_rank_may_say_ends_the_gang(yard: Bench, said: str) -> None:
    job = yard.run("forges", ranks=2, text=said)
    code, message = failed(job)
    assert (code, "did not keep to the protocol" in message) == ("invalid_request", True), message
    assert job.pids[0] != 1


def test_what_is_said_for_another_rank_is_its_own(yard: Bench) -> None:
    job = yard.run("forges", text=line(type="log", rank=7, text="forged") + line(type="done"), number=3)
    assert "exit status 3" in failed(job)[1]
    assert [(e["rank"], e["text"]) for e in yard.events(job.id) if e["type"] == "log"] == [(0, "forged")]


@pytest.mark.parametrize(("number", "error"), [(0, "exit status 1"), (1, "no sign of life")])
def test_a_rank_that_closes_everything_fails(yard: Bench, number: int, error: str) -> None:
    assert error in failed(yard.run("closes", number=number))[1]


def test_a_rank_that_stops_itself_is_ended(yard: Bench) -> None:
    code, message = failed(yard.run("stops"))
    assert (code, "no sign of life" in message) == ("crashed", True)


def test_output_without_an_end_is_cut(yard: Bench) -> None:
    job = yard.run("pours", timeout=2)
    assert failed(job)[0] == "timed_out"
    assert sum(len(e["text"]) for e in yard.events(job.id) if e["type"] == "log") < 65 << 20


@pytest.mark.parametrize("where", ["memfd", "shm", "segments"])
def test_memory_that_is_no_processs_counts_too(yard: Bench, where: str) -> None:
    code, message = failed(yard.run("bloats", text=where))
    assert code == "invalid_request"
    assert message.startswith("The job ran out of memory: its ")
    assert f"a gang of 1 may hold {MEMORY + (512 << 20):,} ({MEMORY:,} a rank, and 536,870,912)" in message


def test_only_plain_files_are_published(yard: Bench) -> None:
    job = yard.run("plants")
    assert job.outputs == []
    assert set(job.facts["0"].values()) == {"invalid_request"}, job.facts


def test_a_work_folder_that_clings_is_removed(yard: Bench) -> None:
    yard.run("clings", number=1200)
    eventually(lambda: not list(yard.settings.jobs.iterdir()))


def test_a_job_that_succeeded_keeps_its_outputs_whatever_it_left_running(tmp_path: Path) -> None:
    mark = f"mark-{os.getpid()}-left"
    with bench(tmp_path, sandbox="off") as yard:
        kept = yard.run("leaves", number=2, text=mark)
        assert not processes_with(mark)
        warnings = [e["text"] for e in yard.events(kept.id) if e.get("level") == "warning"]
    assert (kept.state, [output["name"] for output in kept.outputs]) == (State.succeeded, ["kept"])
    assert kept.facts["0"]["strays"] == 2
    (warning,) = warnings
    assert warning.startswith("WARNING: the job left 2 processes running, which the platform ended: ")
    assert warning.count(mark) == 2
