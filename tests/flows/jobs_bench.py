"""A platform's job side alone, for the flow tests of jobs: a real supervisor, database, store and scheduler, no HTTP."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kinds_for_tests
import kinds_that_attack

from modelyard import migrations
from modelyard.catalogue import service as catalogue
from modelyard.db import Database
from modelyard.jobs import service
from modelyard.jobs.executor import LocalExecutor
from modelyard.jobs.scheduler import Scheduler
from modelyard.jobs.types import Job, Submission
from modelyard.kinds import JobKind
from modelyard.plugins import Registry, load
from modelyard.settings import Settings
from modelyard.storage import Artefacts, open_store
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.types import Principal, Scope

HERE = Path(__file__).parent
PATIENCE = 60.0


def registry() -> Registry[JobKind]:
    kinds: Registry[JobKind] = Registry("job kind", {})
    for name, kind in (kinds_for_tests.KINDS | kinds_that_attack.KINDS).items():
        kinds.add(name, kind)
    return kinds


def eventually(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """The first true value of `condition`, asked often; fails after `patience` seconds."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError(f"not within {patience} s")


@contextmanager
def supervisor(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A supervisor process on the settings' run folder."""
    process = subprocess.Popen([sys.executable, "-m", "modelyard.jobs.supervisor", str(settings.run)])
    try:
        eventually((settings.run / "supervisor.sock").exists)
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)


class Bench:
    """One project with a scheduler that ticks when the test says so."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.db = Database(settings.database_url)
        migrations.metadata().create_all(self.db.engine)
        self.artefacts = Artefacts(open_store(settings.store_url), settings.cache)
        self.principal = Principal("team", "key1", Scope.write)
        with self.db.begin() as session:
            if not any(project["name"] == "team" for project in tenancy.projects(session)):
                tenancy.create_project(session, "team")
        self.kinds = registry()
        self.start()

    def lose_control(self) -> None:
        """Control is gone at once: what it held in memory with it; the sockets of its gangs are closed."""
        self.scheduler._pool.shutdown(cancel_futures=True)
        self.scheduler._stores.shutdown(cancel_futures=True)
        self.executor.close()

    def close(self) -> None:
        self.scheduler.close()
        self.executor.close()
        self.db.close()

    def start(self) -> None:
        """A control begins."""
        make = load("modelyard.jobs.ray.executor:RayExecutor") if self.settings.cluster else LocalExecutor
        self.executor = make(self.settings, extra_readonly=[HERE])
        self.scheduler = Scheduler(self.db, self.artefacts, self.executor, self.settings, self.kinds)
        self.scheduler.recover()

    def submit(self, kind: str, *, inputs: dict[str, str] | None = None, ranks: int = 1, **rest: Any) -> str:
        config = {name: rest.pop(name) for name in ("number", "text", "rank") if name in rest}
        asked = Submission(kind=kind, config=config, inputs=inputs or {}, ranks=ranks, **rest)
        with self.db.begin() as session:
            job = service.submit(session, self.principal, asked, self.kinds, nodes=self.executor.nodes())
        self.scheduler.wake()
        return job.id

    def artefact(self, folder: Path) -> str:
        manifest = self.artefacts.publish("team", folder)
        with self.db.begin() as session:
            catalogue.record_artefact(session, "team", manifest)
        return manifest.hash

    def job(self, job: str) -> Job:
        with self.db.read() as session:
            return service.get(session, "team", job)

    def events(self, job: str) -> list[dict[str, Any]]:
        with self.db.read() as session:
            return list(service.events(session, "team", job, 0, 100_000))

    def log(self, job: str) -> str:
        return "\n".join(event["text"] for event in self.events(job) if event["type"] == "log")

    def cancel(self, job: str) -> None:
        with self.db.begin() as session:
            service.cancel(session, self.principal, job)
        self.scheduler.wake()

    def until(self, condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
        """Tick until the condition is true."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            self.scheduler.tick()
            if value := condition():
                return value
            self.executor.wait(0.1)
        raise AssertionError(f"not within {patience} s")

    def finish(self, *jobs: str, patience: float = PATIENCE) -> list[Job]:
        """Tick until the jobs have ended."""
        self.until(lambda: all(self.job(job).state.ended for job in jobs), patience)
        return [self.job(job) for job in jobs]

    def run(self, kind: str, **asked: Any) -> Job:
        return self.finish(self.submit(kind, **asked))[0]


@contextmanager
def bench(folder: Path, **settings: Any) -> Iterator[Bench]:
    """A bench in `folder`, with a supervisor of its own."""
    chosen = Settings(**{"data": folder, "job_memory": 4 << 30, "job_cpus": 4, "sandbox": "auto", **settings})
    chosen.jobs.mkdir(parents=True, exist_ok=True)
    with supervisor(chosen):
        yard = Bench(chosen)
        try:
            yield yard
        finally:
            yard.close()


def processes_with(mark: str) -> list[int]:
    """Pids of processes that have `mark` among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "cmdline").read_bytes() and int(path.name) != os.getpid():
                found.append(int(path.name))
        except OSError:
            continue
    return found
