"""The verbs of `Yard` about work and what it rests on: submit a job, look at it, wait for it; a version and its lineage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from modelyard.client.following import follow
from modelyard.client.outcome import failure_of
from modelyard.client.wire import Wire, segment

Json = dict[str, Any]
OnEvent = Callable[[Mapping[str, Any]], None]
Kind = Literal["dataset", "model"]


class Jobs:
    """Jobs and versions of one platform."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def submit(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        target: Mapping[str, str] | None = None,
        ranks: int = 1,
        **limits: Any,
    ) -> Json:
        """Submit a job of any kind; `inputs` are role → 'dataset:digits@1', 'model:cnn@best' or 'artefact:<hash>'. `limits`:
        timeout, max_restarts, priority, resources (what each rank takes: {'cpus', 'gpus', 'memory' in bytes}), resume."""
        body = {"kind": kind, "config": dict(config), "inputs": dict(inputs), "target": target, "ranks": ranks, **limits}
        return dict(self._wire.post("/api/jobs", {key: value for key, value in body.items() if value is not None}))

    def jobs(self, state: str | None = None) -> list[Json]:
        """The newest 1,000, newest first; of one state if given."""
        return list(self._wire.get("/api/jobs", state=state))

    def underway(self, first: int = 20) -> Json:
        """{jobs, counts}: the jobs that start or run, then the `first` of the queue in its order; how many of each state."""
        return dict(self._wire.get("/api/jobs/underway", first=first))

    def job(self, job: str) -> Json:
        return dict(self._wire.get(f"/api/jobs/{segment(job)}"))

    def cancel(self, job: str) -> Json:
        """Ask a job to stop; one that has ended stays as it is."""
        return dict(self._wire.post(f"/api/jobs/{segment(job)}/cancel"))

    def events(self, job: str, after: int = 0) -> Iterator[Json]:
        """What a job has said so far, from event number `after` on."""
        yield from self._wire.lines(f"/api/jobs/{segment(job)}/events", after=after, follow="false")

    def follow(self, job: str, after: int = 0) -> Iterator[Json]:
        """What a job says, from its start to its end; a broken connection is taken up where it broke for up to a minute."""
        return follow(self._wire, job, after)

    def logs(self, job: str, *, follow: bool = False) -> Iterator[str]:
        """The lines that a job's ranks wrote."""
        for event in self.follow(job) if follow else self.events(job):
            if event["type"] == "log":
                yield str(event["text"])

    def wait(self, job: str, on_event: OnEvent | None = None) -> Json:
        """Wait for a job's end and return it. Raises the job's own error if it failed or was cancelled."""
        for event in self.follow(job):
            if on_event:
                on_event(event)
        ended = self.job(job)
        if ended["state"] != "succeeded":
            raise failure_of(ended)
        return ended

    def version(self, reference: str, kind: Kind = "model") -> Json:
        """One version by 'name', 'name@3' or 'name@alias'."""
        name, _, number = reference.partition("@")
        if not number:
            number = str(self.versions(name, kind)["versions"][-1]["version"])
        return dict(self._wire.get(f"{collection(kind)}/{segment(name)}/versions/{segment(number)}"))

    def versions(self, name: str, kind: Kind = "model") -> Json:
        """A name's versions, oldest first, and its aliases."""
        return dict(self._wire.get(f"{collection(kind)}/{segment(name)}"))

    def lineage(self, reference: str, kind: Kind = "model") -> Json:
        """Where a version comes from: {reference, kind, hash, job, task, created, parents: […]}, down to the data."""
        version = self.version(reference, kind)
        path = f"{collection(kind)}/{segment(version['name'])}/versions/{version['version']}/lineage"
        return dict(self._wire.get(path))


def collection(kind: Kind) -> str:
    return f"/api/{kind}s"
