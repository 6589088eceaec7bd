"""The jobs room over threads and memory, for its unit tests: a project, an executor without processes, kinds of this module."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelyard.catalogue import service as catalogue
from modelyard.db import Base, Database, Session
from modelyard.errors import Invalid
from modelyard.jobs import service
from modelyard.jobs.scheduler import Scheduler
from modelyard.jobs.types import Job, Node, Submission
from modelyard.kinds import Config, JobKind
from modelyard.plugins import Registry
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.types import Principal, Scope
from modelyard.testing import InlineExecutor, MemoryStore


class Inner(Config):
    depth: int = 1


class Plan(Config):
    text: str = ""
    number: int = 0
    inner: Inner = Inner()


# What 'holds' waits for; a test that lets it go must set it anew.
GATE = threading.Event()


def makes(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """One output with the text, whose alias is the text where it says so."""
    folder = context.work / "out"
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(config.text)
    context.report(samples=config.number)
    outputs.publish("out", folder, metadata={"text": config.text}, alias=config.text or None)


def holds(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    while not GATE.wait(0.005):
        context.check()


def refuses(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    raise Invalid(config.text)


def counts(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Say where it begins, keep a checkpoint, then hold."""
    before = context.latest()
    context.log(f"begins at {(before / 'step').read_text() if before else 0}")
    folder = context.work / "kept"
    folder.mkdir()
    (folder / "step").write_text("5")
    context.checkpoint(5, folder)
    context.log("kept")
    holds(config, inputs, outputs, context)


CLIMBS = True


def climbs(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """As 'counts', each life a step further than the one before, while that may be."""
    before = context.latest()
    step = (int((before / "step").read_text()) if before else 0) + CLIMBS
    folder = context.work / "kept"
    folder.mkdir()
    (folder / "step").write_text(str(step))
    context.checkpoint(step, folder)
    context.log("kept")
    holds(config, inputs, outputs, context)


def begins(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    context.log("begins")
    holds(config, inputs, outputs, context)


def parent(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    child = context.submit(config.text or "makes", {"number": 3}, {})
    context.report(child=context.wait(child))


def stranger(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    context.wait(config.text)


def judges(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """One output that says what was found of it, or of the input `text`, beside the input 'base'."""
    folder = context.work / "out"
    folder.mkdir()
    (folder / "text.txt").write_text("judged")
    said = {"baseline": "base", "dataset": "dataset", "split": "report", "evidence": {"rows": config.number}}
    said |= {"candidate": config.text} if config.text else {}
    outputs.publish("out", folder, metadata={"evaluation": said, "kept": True})


def adopts(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Takes over what a child that 'judges' made."""
    given = {"dataset": inputs["dataset"].reference, "base": inputs["base"].reference}
    child = context.submit("judges", {"number": config.number}, {role: f"dataset:{one}" for role, one in given.items()})
    context.wait(child)
    outputs.adopt("best", child, "out", metadata={"adopted": True}, alias="best")


def kinds() -> Registry[JobKind]:
    found: Registry[JobKind] = Registry("job kind", {})
    for name in ("makes", "holds", "refuses", "begins", "counts", "climbs", "parent", "stranger"):
        free = ("number",) if name == "counts" else None
        found.add(name, JobKind(name, Plan, f"jobs_office:{name}", optional=("base",), gang=True, resumable=free))
    both = {"inputs": ("dataset", "base"), "target": "model"}
    found.add("judges", JobKind("judges", Plan, "jobs_office:judges", evaluates=True, **both))  # type: ignore[arg-type]
    found.add("claims", JobKind("claims", Plan, "jobs_office:judges", **both))  # type: ignore[arg-type]
    found.add("adopts", JobKind("adopts", Plan, "jobs_office:adopts", **both))  # type: ignore[arg-type]
    found.add("trains", JobKind("trains", Plan, "jobs_office:makes", inputs=("dataset",), optional=("model",), target="model"))
    return found


class Office:
    """A project 'team' and a scheduler over threads that ticks when the test says so."""

    def __init__(self, folder: Path, cpus: int = 4, **settings: Any) -> None:
        self.settings = Settings(data=folder, **settings)
        self.db = Database(self.settings.database_url)
        Base.metadata.create_all(self.db.engine)
        self.store = MemoryStore()
        self.artefacts = Artefacts(self.store, self.settings.cache)
        self.kinds = kinds()
        self.principal = Principal("team", "key1", Scope.write)
        with self.db.begin() as session:
            for project in ("default", "team", "other"):
                tenancy.create_project(session, project)
        self.begin(cpus)

    def begin(self, cpus: int = 4) -> None:
        """A control begins, with nothing in memory."""
        self.executor = InlineExecutor(cpus)
        self.scheduler = Scheduler(self.db, self.artefacts, self.executor, self.settings, self.kinds)
        self.scheduler.recover()

    def nodes_apart(self) -> list[bool]:
        """From now on, whenever the executor is asked for its nodes: whether a transaction was open."""
        begin, nodes, opened, seen = self.db.begin, self.executor.nodes, list[object](), list[bool]()

        @contextmanager
        def watched() -> Iterator[Session]:
            with begin() as session:
                opened.append(session)
                try:
                    yield session
                finally:
                    opened.remove(session)

        def asked() -> Sequence[Node]:
            seen.append(bool(opened))
            return nodes()

        self.db.begin, self.executor.nodes = watched, asked  # type: ignore[method-assign]
        return seen

    def close(self) -> None:
        GATE.set()
        self.scheduler.close()
        self.db.close()

    def submit(self, kind: str, principal: Principal | None = None, **asked: Any) -> Job:
        with self.db.begin() as session:
            who = principal or self.principal
            job = service.submit(session, who, Submission(kind=kind, **asked), self.kinds, nodes=self.executor.nodes())
        self.scheduler.wake()
        return job

    def job(self, job: str) -> Job:
        with self.db.read() as session:
            return service.get(session, "team", job)

    def jobs(self) -> list[Job]:
        with self.db.read() as session:
            return service.jobs(session, "team")

    def waits_as(self, job: str, project: str = "team") -> int | None:
        """As how many-th a job waits."""
        with self.db.read() as session:
            return service.get(session, project, job).position

    def events(self, job: str) -> list[dict[str, Any]]:
        with self.db.read() as session:
            return list(service.events(session, "team", job))

    def said(self, job: str, kind: str, field: str) -> list[Any]:
        return [event[field] for event in self.events(job) if event["type"] == kind]

    def cancel(self, job: str) -> Job:
        with self.db.begin() as session:
            cancelled = service.cancel(session, self.principal, job)
        self.scheduler.wake()
        return cancelled

    def dataset(self, folder: Path, name: str = "digits") -> str:
        """A dataset version of one file; its hash."""
        folder.mkdir(exist_ok=True)
        (folder / "a.txt").write_text(name)
        manifest = self.artefacts.publish("team", folder)
        with self.db.begin() as session:
            catalogue.record_artefact(session, "team", manifest)
            catalogue.register(session, "team", kind="dataset", name=name, artefact=manifest.hash, metadata={"rows": 1})
        return manifest.hash

    def until(self, condition: Callable[[], Any]) -> Any:
        """Tick until the condition is true."""
        deadline = time.monotonic() + 90  # a machine may be slow, and an export takes ten seconds there
        while time.monotonic() < deadline:
            self.scheduler.tick()
            if value := condition():
                return value
            self.executor.wait(0.2)
        raise AssertionError("it did not come to be")

    def finish(self, *jobs: str) -> list[Job]:
        self.until(lambda: all(self.job(job).state.ended for job in jobs))
        return [self.job(job) for job in jobs]
