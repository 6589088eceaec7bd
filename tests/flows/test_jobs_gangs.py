"""Gangs as real processes in the sandbox: how they work together, how they end, and that nothing of them is left."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_bench import Bench, bench, eventually, processes_with

from modelyard.jobs import sandbox
from modelyard.jobs.types import State


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench(tmp_path_factory.mktemp("yard"), job_memory=2 << 30) as yard:
        yield yard


def test_two_ranks_reduce_over_gloo(yard: Bench) -> None:
    job = yard.run("reduce_all", ranks=2)
    assert job.state is State.succeeded, yard.log(job.id)
    assert len(set(job.pids)) == 2
    assert {rank: facts["samples"] for rank, facts in job.facts.items()} == {"0": 10, "1": 10}
    assert [e["values"] for e in yard.events(job.id) if e["type"] == "metric"] == [{"total": 3.0}]
    assert job.progress == {"done": 1, "total": 1, "unit": "steps"}
    assert sorted(yard.log(job.id).splitlines()) == ["rank 0 sees 3", "rank 1 sees 3"]
    assert job.cpu_us > 0


def test_a_rank_that_raises_fails_the_job(yard: Bench) -> None:
    job = yard.run("raises", ranks=2, rank=1)
    assert (job.state, job.attempt) == (State.failed, 1)
    assert job.error is not None
    assert job.error["code"] == "internal"
    assert "rank 1: ValueError: boom" in job.error["message"]
    assert "ValueError: boom" in yard.log(job.id)


def test_a_rank_that_raises_while_the_others_are_in_a_collective_ends_them_soon(yard: Bench) -> None:
    job = yard.run("strands", ranks=3, rank=2, text="raise")
    took = time.monotonic() - job.facts["2"]["at"]
    assert job.error is not None
    assert "rank 2: ValueError: boom in forward" in job.error["message"]
    assert ", in forward\n" in job.error["message"]
    assert took < 10


def test_the_rank_that_hangs_is_named_and_those_that_wait_for_it(tmp_path: Path) -> None:
    with bench(tmp_path, job_heartbeat=2.0) as yard:
        job = yard.run("strands", ranks=3, rank=1, text="spin", max_restarts=0)
        log = yard.log(job.id)
    assert job.error is not None
    assert "Hung: rank 1 in forward (flows/kinds_with_torch.py:" in job.error["message"]
    assert "; rank 0 in all_reduce (distributed/distributed_c10d.py:" in job.error["message"]
    assert job.error["message"].count("waited for it") == 1
    assert log.count("Current thread") == 3


@pytest.mark.parametrize(("text", "message"), [("", "sys.exit(3)"), ("hard", "exit status 3")])
def test_user_code_that_exits_fails_the_job(yard: Bench, text: str, message: str) -> None:
    job = yard.run("exits", number=3, text=text)
    assert (job.state, job.attempt) == (State.failed, 1)
    assert job.error is not None
    assert job.error["code"] == "invalid_request"
    assert message in job.error["message"]


def test_a_gang_without_a_sign_of_life_is_ended_and_shows_where_it_was(tmp_path: Path) -> None:
    with bench(tmp_path, job_heartbeat=2.0) as yard:
        job = yard.run("spins", ranks=2, max_restarts=0)
        where = [e["rank"] for e in yard.events(job.id) if e["type"] == "log" and "in spins" in e["text"]]
    assert job.state is State.failed
    assert job.error is not None
    assert job.error["code"] == "crashed"
    assert "no sign of life from any rank for 2 s" in job.error["message"]
    assert "Hung: rank 0 in spins (flows/kinds_for_tests.py:" in job.error["message"]
    assert sorted(where) == [0, 1]


def test_a_gang_of_which_one_rank_hangs_is_found_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with bench(tmp_path, job_heartbeat=2.0) as yard:
        job = yard.run("stalls", ranks=2, rank=1)
        log = yard.log(job.id)
    assert (job.state, job.attempt) == (State.succeeded, 2), log + str(job.error)
    assert "attempt 1 was lost and is started again: " in log
    assert "The gang was ended: no sign of life from rank 1 for 2 s. Hung: rank 1 in spins" in log
    assert "rank 0 in" not in log.partition("attempt 1 was lost")[2]


def test_a_gang_that_hangs_at_every_start_is_not_started_for_ever(tmp_path: Path) -> None:
    with bench(tmp_path, job_heartbeat=1.0) as yard:
        job = yard.run("spins", ranks=1, max_restarts=1)
    assert (job.state, job.attempt) == (State.failed, 2)


@pytest.mark.parametrize(
    ("kind", "ranks", "where"), [("feeds", 2, "in decode"), ("shares", 2, "Hung: rank 0 in decode (flows/kinds_with_torch.py:")]
)
def test_a_rank_that_hangs_where_others_wait_and_speak_is_found(tmp_path: Path, kind: str, ranks: int, where: str) -> None:
    with bench(tmp_path, job_heartbeat=2.0) as yard:
        job = yard.run(kind, ranks=ranks, number=5, max_restarts=0)
        log = yard.log(job.id)
    assert (job.state, job.error and job.error["code"]) == (State.failed, "crashed"), log
    assert where in log + str(job.error)


def test_what_takes_longer_is_announced_by_each_rank(tmp_path: Path) -> None:
    with bench(tmp_path, job_heartbeat=1.0) as yard:
        assert yard.run("loads", ranks=2, number=3, text="all").state is State.succeeded
        job = yard.run("loads", ranks=2, number=3, max_restarts=0)
    assert "no sign of life from rank 1 for 1 s" in str(job.error)


def test_a_gang_that_checks_but_never_ends_is_ended_by_its_time(yard: Bench) -> None:
    job = yard.run("waits", timeout=1.5)
    assert job.state is State.failed
    assert job.error == {"code": "timed_out", "message": job.error["message"]} if job.error else False
    assert "the time it may take" in str(job.error)


def test_memory_is_bounded(yard: Bench) -> None:
    job = yard.run("hogs")
    assert job.state is State.failed
    assert job.error is not None
    assert job.error["code"] == "invalid_request"
    assert f"ran out of memory: a rank may take {2 << 30} bytes" in job.error["message"]


def test_output_is_captured_line_by_line(yard: Bench) -> None:
    lines = yard.log(yard.run("prints").id).splitlines()
    assert lines[:2] == ["bytes � here", "100%"]
    assert "".join(lines[2:-2]) == "x" * 20_000
    assert max(map(len, lines)) == 8192
    assert lines[-2:] == ["to stderr", "no newline at the end"]


def test_a_flood_of_output_arrives_in_order(yard: Bench) -> None:
    job = yard.run("floods", number=20_000)
    assert job.state is State.succeeded
    assert yard.log(job.id).splitlines() == [f"line {n}" for n in range(20_000)]
    assert [e["seq"] for e in yard.events(job.id)] == list(range(1, job.events + 1))


def test_cancel_ends_a_gang(yard: Bench) -> None:
    job = yard.submit("waits", ranks=2)
    yard.until(lambda: "waiting" in yard.log(job))
    began = time.monotonic()
    yard.cancel(job)
    assert yard.finish(job)[0].state is State.cancelled
    assert time.monotonic() - began < 5


@pytest.mark.skipif(not sandbox.available(), reason="bubblewrap does not run here")
def test_a_process_of_another_session_dies_with_its_gang(yard: Bench) -> None:
    mark = f"mark-{os.getpid()}-left"
    assert yard.run("strays", text=mark).state is State.succeeded
    eventually(lambda: not processes_with(mark))


def test_a_killed_rank_ends_its_peers_and_is_tried_again(yard: Bench) -> None:
    job = yard.submit("waits", ranks=2)
    pids = yard.until(lambda: yard.job(job).pids)
    os.kill(pids[1], signal.SIGKILL)
    again = yard.until(lambda: yard.job(job).attempt == 2 and yard.job(job).state is State.running and yard.job(job).pids)
    assert not set(again) & set(pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert "rank 1 was killed by signal 9" in yard.log(job)
    yard.cancel(job)
    assert yard.finish(job)[0].state is State.cancelled
