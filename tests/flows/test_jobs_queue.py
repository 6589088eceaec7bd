"""The queue of a real control: a project that floods it starves nobody; jobs of several priorities under kills are never lost,
leave no process behind and are charged for what they did.
"""

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_bench import Bench, bench, eventually, processes_with
from sqlalchemy import select

from modelyard.jobs import service
from modelyard.jobs.tables import JobRow
from modelyard.jobs.types import State, Submission
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.tables import Usage
from modelyard.tenancy.types import Principal, Scope

OTHER = Principal("other", "key2", Scope.write)
ADMIN = Principal("default", "key3", Scope.admin)


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path / "yard", job_cpus=2) as yard:
        with yard.db.begin() as session:
            for project in ("other", "default"):
                tenancy.create_project(session, project)
        yield yard


def submit(yard: Bench, who: Principal, kind: str, ranks: int = 1, priority: int = 0, **config: object) -> str:
    asked = Submission(kind=kind, config=config, ranks=ranks, priority=priority, max_restarts=1000)
    with yard.db.begin() as session:
        job = service.submit(session, who, asked, yard.kinds, nodes=yard.executor.nodes())
    yard.scheduler.wake()
    return job.id


def rows(yard: Bench) -> list[JobRow]:
    with yard.db.read() as session:
        return list(session.scalars(select(JobRow)))


def ended(yard: Bench) -> bool:
    return all(State(row.state).ended for row in rows(yard))


def test_one_project_floods_and_the_others_job_is_not_starved(yard: Bench) -> None:
    for _ in range(12):
        submit(yard, yard.principal, "works", number=6)
    yard.until(lambda: any(row.pids for row in rows(yard)))
    theirs = [submit(yard, OTHER, "works", number=6) for _ in range(3)]
    yard.until(lambda: ended(yard))
    assert {row.state for row in rows(yard)} == {"succeeded"}
    order = [row.id for row in sorted(rows(yard), key=lambda row: row.started)]
    # Two ran already: of those that start from then on, the other project has every second one at the least.
    assert max(order.index(job) for job in theirs) <= 2 + 2 * len(theirs), [job in theirs for job in order]


def launcher(rank: int) -> int:
    """The parent of a rank's process."""
    return int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])


def strike(yard: Bench, draw: random.Random) -> str:
    """Kill a rank, a launcher, or control."""
    victim = draw.choice(["rank", "rank", "launcher", "control"])
    if victim == "control":
        yard.lose_control()
        yard.start()
        return victim
    running = yard.until(lambda: [row for row in rows(yard) if row.state == State.running.value])
    pid = draw.choice([pid for row in running for pid in row.pids])
    try:
        os.kill(pid if victim == "rank" else launcher(pid), signal.SIGKILL)
    except (ProcessLookupError, FileNotFoundError):
        return f"{victim}, which had ended"
    return victim


@pytest.mark.soak
def test_ten_kills_among_jobs_of_several_priorities_lose_nothing(yard: Bench, seed: int) -> None:
    draw, struck = random.Random(seed), []
    print(f"seed {seed}")
    plain = [submit(yard, yard.principal, "climbs", ranks=1 + n % 2, priority=-n, number=60) for n in range(5)]
    plain += [submit(yard, OTHER, "climbs", ranks=1 + n % 2, priority=-2 * n, number=60) for n in range(3)]
    for number in range(10):
        moment = yard.scheduler._looked + draw.uniform(0.1, 1.5)
        yard.until(lambda at=moment: yard.scheduler._looked >= at)
        if number % 3 == 0:
            plain.append(submit(yard, ADMIN, "climbs", ranks=2, priority=5 + number, number=12))
        struck.append(strike(yard, draw))
    yard.until(lambda: ended(yard), 300)
    print(struck, [(row.priority, row.attempt, row.preempted, row.abandoned) for row in rows(yard)])
    assert {row.id: row.state for row in rows(yard)} == dict.fromkeys(plain, "succeeded")
    assert len({(row.config["number"], row.outputs[0]["hash"]) for row in rows(yard)}) == 2
    eventually(lambda: not processes_with(str(yard.settings.jobs)))
    eventually(lambda: not list(yard.settings.jobs.iterdir()))
    for row in rows(yard):
        check_books(yard, row)


def check_books(yard: Bench, row: JobRow) -> None:
    """One entry an attempt; only what was lost is an error; nothing is counted twice."""
    with yard.db.read() as session:
        book = {use.source: use for use in session.scalars(select(Usage).where(Usage.subject == row.id))}
    assert sorted(book) == sorted(f"job:{row.id}:{number}" for number in range(1, row.attempt + 1))
    assert sum(use.cpu_us for use in book.values()) == row.cpu_us
    assert sum(use.calls for use in book.values()) == 1
    assert sum(use.errors for use in book.values()) == row.attempt - 1 - row.preempted
    # Of several ranks, which are not in step here, only the first one's checkpoints count.
    assert sum(use.units for use in book.values()) >= row.config["number"]


@pytest.mark.soak
def test_one_that_makes_room_again_and_again_gets_there(yard: Bench, seed: int) -> None:
    draw = random.Random(seed)
    print(f"seed {seed}")
    quiet = submit(yard, yard.principal, "climbs", ranks=2, number=100)
    yard.until(lambda: ended(yard))
    low = submit(yard, yard.principal, "climbs", ranks=2, number=100)
    for number in range(12):
        moment = yard.scheduler._looked + draw.uniform(0.5, 2.5)
        yard.until(lambda at=moment: yard.scheduler._looked >= at)
        if yard.job(low).state.ended:
            break
        high = submit(yard, ADMIN, "climbs", ranks=2, priority=5, number=5)
        if number % 4 == 3:  # control goes while room is made
            yard.lose_control()
            yard.start()
        yard.until(lambda job=high: all(State(row.state).ended for row in rows(yard) if row.id == job))
    yard.until(lambda: ended(yard), 300)
    done = {row.id: row for row in rows(yard)}
    print([(row.priority, row.attempt, row.preempted, row.abandoned) for row in rows(yard)])
    assert {row.state for row in done.values()} == {"succeeded"}
    assert done[low].outputs[0]["hash"] == done[quiet].outputs[0]["hash"]
    assert done[low].preempted >= 3
    assert done[low].attempt == 1 + done[low].preempted + done[low].abandoned
    for row in done.values():
        check_books(yard, row)
