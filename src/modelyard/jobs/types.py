"""The values of the jobs room: states, what a submitter asks for, and what runs where.

`Executor` is the one port through which gangs and replicas start, on local processes now and on Ray later.
Its contract suite is `tests/contracts/test_executors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import Field

from modelyard.kinds import Config

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class State(StrEnum):
    queued = "queued"
    starting = "starting"
    running = "running"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (State.succeeded, State.failed, State.cancelled)


class Target(Config):
    """What a job's outputs become versions of."""

    kind: Literal["dataset", "model"]
    name: str = Field(pattern=NAME)


class Submission(Config):
    """POST /api/jobs. `inputs`: role → reference ('dataset:digits@1', 'model:cnn@best', 'artefact:<hash>')."""

    kind: str
    config: dict[str, Any] = {}
    inputs: dict[str, str] = {}
    target: Target | None = None
    ranks: int = Field(default=1, ge=1, le=1024)
    timeout: float | None = Field(default=None, gt=0)


@dataclass(frozen=True, slots=True)
class GangInput:
    """An input as the gang sees it: a read-only folder on the node."""

    reference: str
    hash: str
    metadata: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, slots=True)
class Gang:
    """Everything needed to run one attempt of a job on one node. `token` fences: a later attempt has another.
    `run` and `config_path` are import paths: of the function and of its `Config`; the config itself travels as JSON."""

    token: str
    job: str
    run: str
    config_path: str
    config: Mapping[str, Any]
    inputs: Mapping[str, GangInput]
    ranks: int
    work: Path
    resume: Path | None = None
    memory: int = 16 << 30
    timeout: float = 24 * 3600.0
    heartbeat: float = 120.0


@dataclass(frozen=True, slots=True)
class Event:
    """What a gang says. `type` is one of: started (pids), log (rank, text), progress (done, total, unit), metric (step, values),
    report (rank, facts), output (name, folder, task, metadata, alias), checkpoint (step, folder, ask), submit (submission, ask),
    wait (job, ask), ended (ok, error, signal, cpu_seconds, cancelled). Events with `ask` wait for `GangHandle.answer`."""

    type: str
    body: Mapping[str, Any]


class GangHandle(Protocol):
    """A running gang, seen from control."""

    @property
    def token(self) -> str: ...

    def poll(self) -> Sequence[Event]:
        """Events since the last poll, in order, without waiting. The last one is always 'ended'."""
        ...

    def answer(self, ask: int, value: Any) -> None: ...

    def cancel(self) -> None:
        """Ask the ranks to stop (they see `Cancelled`); `kill` follows after a grace."""
        ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """A replica to start. `folder` holds the verified artefact; it listens on the Unix socket `socket` (mode 0600)."""

    token: str
    engine: str
    folder: Path
    socket: Path
    log: Path
    threads: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process by token: its pid on the node, and its exit code once it ended (negative: killed by that signal)."""

    token: str
    pid: int
    exit: int | None


class Executor(Protocol):
    """Starts gangs and replicas on nodes. Replicas outlive the process that asked for them and are found again by token;
    gangs end with it."""

    def start_gang(self, gang: Gang) -> GangHandle: ...
    def start_replica(self, spec: ReplicaSpec) -> None: ...
    def stop_replica(self, token: str, grace: float = 5.0) -> None:
        """Drain and end it; unknown tokens are ignored."""
        ...

    def replicas(self) -> Mapping[str, ProcessStatus]: ...
    def cpus(self) -> int: ...
