"""What must hold once a platform that was killed has recovered: every job, book, folder and process is looked at."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

from kill_processes import Platform, Process, everything, until
from kill_work import DEPLOYMENTS, Caller, Scene, insist, weights

from modelyard.client import Yard
from modelyard.storage import Artefacts, open_store


def check(scene: Scene, callers: list[Caller]) -> None:
    """Wait until everything is done, then look whether the state is whole. Work and callers are stopped."""
    platform = scene.platform
    with platform.yard() as yard:
        until(lambda: insist(lambda: not _unended(yard)), 300, "all jobs end")
        failed = rows(platform.data, "select id, kind, attempt, error from jobs where state != 'succeeded'")
        assert not failed, failed
        until(lambda: insist(lambda: _ready(yard)), 120, "all deployments are ready")
        for name in DEPLOYMENTS:
            assert yard.predict(name, {"x": [[1.0, 2.0, 3.0]]}).outputs["y"].tolist() == [[16.0, 22.0]]
        twins = [version["version"] for version in yard.versions("twin")["versions"]]
        assert {weights(yard, f"twin@{number}") for number in twins} == {scene.weights}
    check_calls(platform.data, callers)
    check_jobs(platform.data)
    check_store(platform.data)
    check_folders(platform.data)
    check_processes(platform)


def _unended(yard: Yard) -> list[str]:
    return [job["id"] for job in yard.jobs() if job["state"] in ("queued", "starting", "running")]


def _ready(yard: Yard) -> bool:
    found = yard.deployments()
    states = [one["state"] for one in found] + [replica["state"] for one in found for replica in one["replicas"]]
    return len(states) == 2 * len(DEPLOYMENTS) and set(states) == {"ready"}


def rows(data: Path, query: str) -> list[tuple[Any, ...]]:
    """What a query finds in the platform's database."""
    with contextlib.closing(sqlite3.connect(f"file:{data / 'modelyard.db'}?mode=ro", uri=True, timeout=30)) as database:
        return database.execute(query).fetchall()


def served(data: Path, key: str) -> Counter[str]:
    """Calls of a key without errors, by deployment."""
    query = "select subject, sum(calls - errors) from usage where kind = 'serving' and key = '{}' group by subject"
    return Counter(dict(rows(data, query.format(key))))


def check_calls(data: Path, callers: list[Caller]) -> None:
    """Each answered call is in the ledger once; one that was cut off may be there, once, or not."""
    assert not [wrong for caller in callers for wrong in caller.wrong]
    key = callers[0]._key.split("_")[1]
    answered, lost = Counter[str](), Counter[str]()
    for caller in callers:
        answered, lost = answered + caller.answered, lost + caller.lost
    with contextlib.suppress(AssertionError):
        until(lambda: all(served(data, key)[name] >= answered[name] for name in DEPLOYMENTS), 60, "all is settled")
    # What would come too much comes with a later settlement, of which there are two a second: only time tells that none does.
    time.sleep(1.5)
    booked = served(data, key)
    for name in DEPLOYMENTS:
        assert answered[name] > 0
        assert answered[name] <= booked[name] <= answered[name] + lost[name], (name, answered, booked, lost)
    assert len(list((data / "run" / "meters").glob("*.meter"))) <= 1


def check_jobs(data: Path) -> None:
    """One entry in the ledger for each attempt of each job."""
    booked: dict[str, list[int]] = {}
    for (source,) in rows(data, "select source from usage where kind = 'job'"):
        _, job, attempt = source.split(":")
        booked.setdefault(job, []).append(int(attempt))
    attempts = dict(rows(data, "select id, attempt from jobs"))
    assert {job: sorted(found) for job, found in booked.items()} == {
        job: list(range(1, last + 1)) for job, last in attempts.items()
    }


def trainings_resumed(data: Path) -> int:
    """How many trainings went on from a checkpoint at least once, by what they said."""
    query = "select count(distinct job) from job_events where type = 'log' and body like '%resumed after epoch%'"
    return int(rows(data, query)[0][0])


def check_store(data: Path) -> None:
    """Every manifest and all it names is whole, and every version has one."""
    store = data / "store" / "projects" / "default"
    artefacts = Artefacts(open_store((data / "store").as_uri()), data / "cache")
    found = {path.stem for path in (store / "artefacts").iterdir() if path.suffix == ".json"}
    blobs: set[str] = set()
    for digest in found:
        blobs |= set(artefacts.manifest("default", digest).blobs())
    for digest in blobs:
        assert hashlib.sha256((store / "blobs" / digest[:2] / digest).read_bytes()).hexdigest() == digest
    named = {artefact for (artefact,) in rows(data, "select artefact from versions")}
    assert named <= found, named - found


def check_folders(data: Path) -> None:
    """Nothing is left of jobs that ended."""
    until(lambda: not list((data / "jobs").iterdir()), 60, "no work folders")
    left = [path for path in (data / "store").rglob("*") if "checkpoints" in path.parts and path.is_file()]
    assert not left, left


def check_processes(platform: Platform) -> None:
    """The platform runs what it must and nothing else; nothing of it runs outside."""
    expected = Counter(supervisor=1, gateway=1, control=1, replica=len(DEPLOYMENTS))

    def as_expected() -> bool:
        return Counter(role for role in platform.tree().values() if role != "sandbox") == expected

    with contextlib.suppress(AssertionError):
        until(as_expected, 60, "the platform's own processes alone")
    tree = platform.tree()
    assert as_expected(), tree
    left = [process for process in platform.known - tree.keys() if process.alive]
    assert not left, (left, tree)
    strays = [p for p in everything().values() if p not in tree and p.pid != os.getpid() and _names_it(p, str(platform.data))]
    assert not [process for process in strays if process.alive], strays


def _names_it(process: Process, data: str) -> bool:
    if any(data in word for word in process.argv):
        return True
    try:
        return data.encode() in Path(f"/proc/{process.pid}/environ").read_bytes()
    except OSError:
        return False
