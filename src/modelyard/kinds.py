"""What a job kind is: a name, a config and `run(config, inputs, outputs, context)`.

The scheduler (outside) knows jobs, projects and the database; a kind (inside, in the sandbox) sees only what is defined here:
views of artefacts, named outputs and a context. The plain-folder versions at the end make every kind usable in a notebook.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of every configuration that crosses a wire: frozen; unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def check_ranks(self, ranks: int) -> None:
        """Raises `Invalid` where a job so configured cannot have so many ranks. Called at submission; most take any number."""


class ArtefactView(Protocol):
    """Read access to one artefact: an immutable folder of files, addressed by `hash`."""

    @property
    def hash(self) -> str: ...
    @property
    def files(self) -> Mapping[str, int]:
        """Relative POSIX path → size in bytes."""
        ...

    def open(self, path: str) -> BinaryIO: ...
    def read_range(self, path: str, start: int, length: int) -> bytes: ...
    def local(self) -> Path:
        """The whole artefact as a plain read-only folder on this machine."""
        ...


@dataclass(frozen=True, slots=True)
class Input:
    """One resolved input: `reference` as pinned ('digits@1'), the version's metadata, and the files."""

    reference: str
    metadata: Mapping[str, Any]
    view: ArtefactView


class Outputs(Protocol):
    """Where a job leaves what it made. Each output becomes a version of the job's target when the job succeeds."""

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        task: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        version: bool = True,
    ) -> None:
        """Hand over `folder` (it must lie inside `context.work` and not change afterwards) under a name unique in the job.
        `metadata` is stored with the version; `alias` is set to that version. Without `version` it stays an artefact that the
        job names, such as a report."""
        ...

    def adopt(self, name: str, job: str, output: str, *, metadata: Mapping[str, Any], alias: str | None = None) -> None:
        """Make an output of a child that succeeded an output of this job, as it is: its version says that the child made it.
        `metadata` is added to what the child said of it."""
        ...


class Cancelled(BaseException):
    """The job was asked to stop. Not an Exception, so that users' `except Exception` lets it pass."""


class JobContext(Protocol):
    """What a job may know and say. Rank 0's outputs and checkpoints count; every rank may log, report and beat."""

    @property
    def job(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def rendezvous(self) -> str:
        """torch.distributed init_method of this gang's attempt, e.g. 'file:///…'; fresh at every attempt."""
        ...

    @property
    def work(self) -> Path:
        """A writable folder, the same for all ranks of the gang; gone when the job is."""
        ...

    def progress(self, done: int, total: int, unit: str = "steps") -> None: ...
    def metric(self, step: int, **values: float) -> None: ...
    def log(self, line: str) -> None: ...
    def report(self, **facts: Any) -> None:
        """Facts kept with the job (per rank): samples seen, seconds, versions. Later calls overwrite same names."""
        ...

    def check(self) -> None:
        """A sign of life of this rank; raises `Cancelled` if the job was asked to stop. Each rank must call it at least every
        few seconds: one that is silent for too long hangs, and its gang is started anew."""
        ...

    def allow(self, times: float = 1.0) -> None:
        """From now on this rank may be silent for so many times as long as usual: before what gives no sign of life, such as
        loading, compiling, or waiting for another rank that does. Without a number: as long as usual again."""
        ...

    def checkpoint(self, step: int, folder: Path, *, score: float | None = None, last: int = 1) -> None:
        """Keep `folder` (inside `work`) as the newest complete checkpoint. Returns when it is stored; then the job has the
        `last` so many, and the one with the lowest `score`. A thread may call it while others work."""
        ...

    def latest(self) -> Path | None:
        """The newest complete checkpoint as a local folder, or None at a first start."""
        ...

    def submit(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        ranks: int = 1,
        reuse: Mapping[str, Any] | None = None,
    ) -> str:
        """Submit a child job under this job's project; returns its id. Inputs are references as in the API. `reuse`: where
        a child of this project was asked the same before and succeeded, by whomever, and rank 0 reported these facts, it has
        what that came to, at once. None: never."""
        ...

    def wait(self, job: str) -> Mapping[str, Any]:
        """Wait for a child job's end: {'state', 'error', 'versions': […], 'facts': {…}}."""
        ...

    def watch(self, after: Mapping[str, int]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Wait for news of the children: for each, in the order they were submitted, its events of type 'state' and 'metric'
        beyond number `after[job]` (0 where it is not named), as the API tells them. Returns at once where no child runs any
        more. From the first call on this job holds no processor, until a `wait` returns: only look and decide meanwhile."""
        ...

    def stop(self, job: str) -> None:
        """Cancel a child job; one that has ended stays as it is."""
        ...


Run = Callable[[Any, Mapping[str, Input], Outputs, JobContext], None]


class Pinned(Protocol):
    """An input as a submission names it: what the catalogue knows, without its files."""

    @property
    def reference(self) -> str: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...


Check = Callable[[Mapping[str, Pinned]], None]


@dataclass(frozen=True, slots=True)
class JobKind:
    """`run` is an import path ('package.module:function') so that naming a kind loads no heavy library.
    `inputs` are the roles that must be given, `optional` those that may be. `gang`: may have several ranks. `target`: what
    its outputs become versions of; a submitter must then name it (a child job need not). `check` raises `Invalid` for inputs,
    by role, that the catalogue already knows to be wrong: it is called at submission and must be cheap. `rejoins`: where its
    gang is lost its children go on, and the next one takes them up again (`watch`); another kind's are cancelled. `resumable`:
    options that may differ where a job goes on from the checkpoint of another; None: it cannot. `evaluates`: what its outputs'
    metadata says as 'evaluation' is recorded as evidence on its inputs; of other kinds it means nothing."""

    name: str
    config: type[Config]
    run: str
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    gang: bool = False
    target: Literal["dataset", "model"] | None = None
    check: Check | None = None
    rejoins: bool = False
    resumable: tuple[str, ...] | None = None
    evaluates: bool = False


@dataclass(slots=True)
class FolderView:
    """A plain folder as an artefact (notebooks, tests, and a rank's own mounted inputs)."""

    folder: Path
    hash: str = ""

    @property
    def files(self) -> Mapping[str, int]:
        return {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in sorted(self.folder.rglob("*")) if p.is_file()}

    def open(self, path: str) -> BinaryIO:
        return (self.folder / path).open("rb")

    def read_range(self, path: str, start: int, length: int) -> bytes:
        with self.open(path) as file:
            file.seek(start)
            return file.read(length)

    def local(self) -> Path:
        return self.folder


@dataclass(slots=True)
class FolderOutputs:
    """Outputs as sub-folders of `folder`; what was published is in `published` by name."""

    folder: Path
    published: dict[str, dict[str, Any]] = field(default_factory=dict)

    def publish(
        self,
        name: str,
        folder: Path,
        *,
        task: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        alias: str | None = None,
        version: bool = True,
    ) -> None:
        target = self.folder / name
        if folder != target:
            shutil.copytree(folder, target)
        self.published[name] = {"task": task, "metadata": dict(metadata or {}), "alias": alias, "folder": target}

    def adopt(self, name: str, job: str, output: str, *, metadata: Mapping[str, Any], alias: str | None = None) -> None:
        raise RuntimeError("child jobs need a platform: run this kind through `modelyard up`")


@dataclass(slots=True)
class FolderContext:
    """A job of one rank in this process: progress is dropped, metrics and facts are kept, child jobs are refused."""

    work: Path
    job: str = "local"
    rank: int = 0
    world_size: int = 1
    metrics: list[dict[str, float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @property
    def rendezvous(self) -> str:
        return f"file://{self.work / 'rendezvous'}"

    def progress(self, done: int, total: int, unit: str = "steps") -> None: ...

    def metric(self, step: int, **values: float) -> None:
        self.metrics.append({"step": step, **values})

    def log(self, line: str) -> None:
        self.lines.append(line)

    def report(self, **facts: Any) -> None:
        self.facts.update(facts)

    def check(self) -> None: ...

    def allow(self, times: float = 1.0) -> None: ...

    def checkpoint(self, step: int, folder: Path, *, score: float | None = None, last: int = 1) -> None:
        target = self.work / "latest"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)

    def latest(self) -> Path | None:
        folder = self.work / "latest"
        return folder if folder.exists() else None

    def submit(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, str],
        *,
        ranks: int = 1,
        reuse: Mapping[str, Any] | None = None,
    ) -> str:
        raise RuntimeError("child jobs need a platform: run this kind through `modelyard up`")

    def wait(self, job: str) -> Mapping[str, Any]:
        raise RuntimeError("child jobs need a platform: run this kind through `modelyard up`")

    def watch(self, after: Mapping[str, int]) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        raise RuntimeError("child jobs need a platform: run this kind through `modelyard up`")

    def stop(self, job: str) -> None:
        raise RuntimeError("child jobs need a platform: run this kind through `modelyard up`")
