"""The values of the jobs room: states, what a submitter asks for, and what runs where.

`Executor` is the one port through which gangs and replicas start, on local processes now and on Ray later.
Its contract suite is `tests/contracts/test_executors.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import Field, ModelWrapValidatorHandler, TypeAdapter, ValidationError, model_validator

from modelyard import fields
from modelyard.errors import Invalid, ModelyardError
from modelyard.jobs.restarts import countdown
from modelyard.kinds import Config

NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
NAME_IN_WORDS = "1–63 of a–z, 0–9, '.', '_', '-', the first a letter or digit"


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


class Amount(NamedTuple):
    """Processors, GPUs and bytes of memory: of a rank, or of a node."""

    cpus: int = 1
    gpus: int = 0
    memory: int = 0


# What a rank takes where nothing is said.
ONE = Amount()


class Resources(Config):
    """What each rank of a job takes. `memory` in bytes; 0: none is set aside, and `job_memory` alone bounds it."""

    cpus: int = Field(default=1, ge=1, le=1 << 16)
    gpus: int = Field(default=0, ge=0, le=1 << 10)
    memory: int = Field(default=0, ge=0, le=1 << 50)

    @property
    def amount(self) -> Amount:
        return Amount(self.cpus, self.gpus, self.memory)


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that gangs run on, and what there is of it in all. `away`: it is given nothing now, and may come back."""

    name: str
    room: Amount
    away: bool = False


class Target(Config):
    """What a job's outputs become versions of."""

    kind: Literal["dataset", "model"]
    name: str = Field(pattern=NAME, description=NAME_IN_WORDS)


class Submission(Config):
    """POST /api/jobs. `inputs`: role → reference ('dataset:digits@1', 'model:cnn@best', 'artefact:<hash>'). `resources` are a
    rank's. `resume`: a job that failed or was cancelled, from whose newest checkpoint this one starts.

    What is wrong is told as `Invalid`, also where a web framework validates.
    """

    kind: str
    config: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    target: Target | None = None
    ranks: int = Field(default=1, ge=1, le=1024)
    resources: Resources = Resources()
    priority: int = Field(default=0, ge=-100, le=100)
    timeout: float | None = Field(default=None, gt=0)
    max_restarts: int | None = Field(default=None, ge=0, le=1000)
    resume: str | None = Field(default=None, max_length=100)

    @model_validator(mode="wrap")
    @classmethod
    def _explained(cls, data: Any, handler: ModelWrapValidatorHandler[Submission]) -> Submission:
        try:
            return handler(data)
        except ValidationError as error:
            raise Invalid(fields.explain(error, cls, "a field of a job")) from error


@dataclass(frozen=True, slots=True)
class Resolved:
    """An input as pinned at submission. `kind` 'artefact': it is no version of anything and has no name."""

    role: str
    kind: Literal["dataset", "model", "artefact"]
    name: str | None
    number: int | None
    artefact: str
    metadata: Mapping[str, Any]

    @property
    def reference(self) -> str:
        return f"artefact:{self.artefact}" if self.name is None else f"{self.name}@{self.number}"


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it stands in the database. `error` is {'code', 'message'}; `facts` are by rank; times are aware, in UTC."""

    id: str
    project: str
    key: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    resolved: tuple[Resolved, ...]
    target: Target | None
    ranks: int
    resources: Amount
    timeout: float | None
    spent: float
    max_restarts: int | None
    resume: str | None
    parent: str | None
    priority: int
    position: int | None
    state: State
    cancelling: bool
    attempt: int
    abandoned: int
    preempted: int
    setbacks: int
    not_before: datetime | None
    token: str | None
    created: datetime
    started: datetime | None
    finished: datetime | None
    error: Mapping[str, str] | None
    progress: Mapping[str, Any] | None
    facts: Mapping[str, Mapping[str, Any]]
    outputs: Sequence[Mapping[str, Any]]
    pids: Sequence[int]
    cpu_us: int
    why: str | None
    events: int

    def ran(self, moment: datetime) -> float:
        """Seconds of the time that it may take: what it waited after it made room is none of it."""
        return self.spent + ((moment - self.started).total_seconds() if self.started else 0.0)

    def to_json(self) -> dict[str, Any]:
        """As the management API shows it; `inputs` as pinned."""
        limits = ("ranks", "timeout", "max_restarts", "priority", "position")
        shown = ("id", "kind", *limits, "resume", "parent", "attempt", "preempted", "error", "progress")
        times = {name: getattr(self, name) for name in ("created", "started", "finished")}
        return {
            **{name: getattr(self, name) for name in shown},
            **{name: time.isoformat() if time else None for name, time in times.items()},
            "state": self.state.value,
            "resources": self.resources._asdict(),
            "why": self.why and countdown(self.not_before, datetime.now(UTC)) + self.why,
            "config": dict(self.config),
            "inputs": dict(self.inputs),
            "target": self.target.model_dump() if self.target else None,
            "facts": dict(self.facts),
            "outputs": list(self.outputs),
            "pids": list(self.pids),
            "cpu_seconds": self.cpu_us / 1e6,
        }


@dataclass(frozen=True, slots=True)
class GangInput:
    """An input as the gang sees it: a read-only folder on the node."""

    reference: str
    hash: str
    metadata: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True, slots=True)
class Gang:
    """Everything needed to run one attempt of a job. `token` fences: a later attempt has another, but one that begins where it
    was. `nodes`: how many ranks on which, rank 0 on the first; `here`: the one whose part of the gang this is, where it has
    several; `each`: what a rank may take of them. `stays`: where the gang is lost its launcher waits to be told the next
    attempt. `run` and `config_path` are import paths: of the function and of its `Config`; the config itself travels as
    JSON."""

    token: str
    job: str
    run: str
    config_path: str
    config: Mapping[str, Any]
    inputs: Mapping[str, GangInput]
    ranks: int
    work: Path
    nodes: tuple[tuple[str, int], ...] = ()
    here: str = ""
    each: Amount = ONE
    resume: Path | None = None
    memory: int = 16 << 30
    disk: int = 64 << 30
    files: int = 200_000
    timeout: float = 24 * 3600.0
    heartbeat: float = 120.0
    stays: bool = False

    @property
    def mine(self) -> range:
        """The ranks that run here."""
        if not self.here:
            return range(self.ranks)
        names = [name for name, _ in self.nodes]
        first = sum(ranks for _, ranks in self.nodes[: names.index(self.here)])
        return range(first, first + dict(self.nodes)[self.here])

    @property
    def spans(self) -> bool:
        """Whether its ranks are on several nodes, which takes the network."""
        return len(self.nodes) > 1

    @property
    def kept(self) -> Path:
        """Where checkpoints to go on from are shown, beside the work folder: ranks cannot write there."""
        return self.work.with_name("resume")

    @property
    def launcher_log(self) -> Path:
        """What the launcher itself prints, beside the work folder: ranks cannot write to it."""
        return self.work.with_name(f"launcher-{self.here}.log" if self.here else "launcher.log")

    def to_wire(self) -> dict[str, Any]:
        """As JSON values; `Gang.from_wire` reads it back."""
        wire: dict[str, Any] = _GANG.dump_python(self, mode="json")
        return wire

    @staticmethod
    def from_wire(wire: Mapping[str, Any]) -> Gang:
        return _GANG.validate_python(wire)


_GANG = TypeAdapter(Gang)


@dataclass(frozen=True, slots=True)
class Event:
    """What a gang says. `type` is one of:

    started (pids, by rank, as the node sees them) · log (rank, text) · progress (done, total, unit) · metric (step, values) ·
    report (rank, facts) · output (name, folder, task, metadata, alias, ask) · checkpoint (step, folder, ask) ·
    submit (submission, ask) · wait (job, ask) · beat (cpu_seconds so far) ·
    ended (ok, error {code, message} or None, signal, cpu_seconds, cancelled, at: when it went wrong by the node's clock, stays:
    its launcher waits for another attempt, or to be let go by `GangHandle.kill`).
    An event with `ask` waits for `GangHandle.answer`. Gangs run users' code: nothing they say is to be trusted.
    """

    type: str
    body: Mapping[str, Any]


class GangHandle(Protocol):
    """A running gang, seen from control."""

    @property
    def token(self) -> str: ...

    def poll(self) -> Sequence[Event]:
        """Events since the last poll, in order, without waiting. The last one is always 'ended'."""
        ...

    def answer(self, ask: int, value: Any, error: ModelyardError | None = None) -> None:
        """Let the rank that asked go on with `value`, or raise `error` there."""
        ...

    def cancel(self) -> None:
        """Ask the ranks to stop (they see `Cancelled`); `kill` follows after a grace."""
        ...

    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """A replica to start. `folder` holds the verified artefact of the version `model` ('digits@3'); it listens on the Unix
    socket `socket` (mode 0600), or where `ProcessStatus.address` says. Those of one `group` go to different nodes where they
    can. `memory`: bytes of data that it may take (0: as a rank may); `nice`: how far it makes way for others."""

    token: str
    engine: str
    folder: Path
    socket: Path
    log: Path
    threads: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    group: str = ""
    memory: int = 0
    nice: int = 0


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """A process by token: its pid on the node, and its exit code once it ended (negative: killed by that signal). `address`:
    where a replica is reached that does not listen on the socket it was given; else empty. `reason`: what it did that it was
    ended for, as "left … in its folder"; else empty."""

    token: str
    pid: int
    exit: int | None
    address: str = ""
    reason: str = ""


class Executor(Protocol):
    """Starts gangs and replicas on nodes. Replicas outlive the process that asked for them and are found again by token;
    gangs end with it."""

    def start_gang(self, gang: Gang, instead: GangHandle | None = None) -> GangHandle:
        """`instead`: an earlier attempt of the job, whose launcher waits: begin there, where everything is loaded."""
        ...

    def start_replica(self, spec: ReplicaSpec) -> None: ...
    def stop_replica(self, token: str, grace: float = 5.0) -> None:
        """Drain and end it; unknown tokens are ignored."""
        ...

    def replicas(self) -> Mapping[str, ProcessStatus]: ...
    def nodes(self) -> Sequence[Node]:
        """The machines that gangs can run on, and what there is of each."""
        ...

    def machines(self) -> Sequence[Node]:
        """The machines that replicas can run on, and what there is of each."""
        ...

    def end_gangs(self) -> Mapping[str, ModelyardError]:
        """End gangs that an earlier process left behind; called before the first start. Tells by token how those had ended that
        had died, or were killed for what they did, before they could learn that it was gone."""
        ...

    def wait(self, timeout: float) -> None:
        """Return as soon as a gang has something to say or `wake` was called, or after `timeout` seconds."""
        ...

    def wake(self) -> None:
        """Have `wait` return now; any thread may call it."""
        ...
