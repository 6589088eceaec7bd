"""The values of the serving room: what a deployment is, where it is served, and what a replica says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, model_validator

from modelyard.errors import Invalid, ModelyardError
from modelyard.jobs.types import NAME
from modelyard.kinds import Config
from modelyard.optimisation.gate import GatePolicy
from modelyard.serving.verdict import Evidence, Policy

Reason = Annotated[str, Field(min_length=3, max_length=1000, pattern=r"\S")]


class DeploymentState(StrEnum):
    """`asleep`: scaled to zero; the next call wakes it."""

    pending = "pending"
    ready = "ready"
    failed = "failed"
    asleep = "asleep"


class ReplicaState(StrEnum):
    """`distrusted`: a gateway heard from it what no replica says."""

    starting = "starting"
    ready = "ready"
    draining = "draining"
    distrusted = "distrusted"


class TrialKind(StrEnum):
    """`canary` answers a share of the calls; `shadow` is given copies of them, and nobody sees its answers."""

    canary = "canary"
    shadow = "shadow"


class Options(Config):
    """How a deployment is served. Between `min_replicas` and `max_replicas` it grows and shrinks with the calls; with 0 it ends
    its processes after `idle` seconds without one, and the next call waits for it. `latency_target`: seconds a call should take
    at most; one that would wait longer is refused at once. `cache`: the same input to the same version is answered from memory.
    `threads`: how many a replica computes in, where the machine has so many to spare. `policy` decides on releases on trial."""

    min_replicas: int = Field(default=1, ge=0, le=64)
    max_replicas: int = Field(default=1, ge=1, le=64)
    latency_target: float | None = Field(default=None, gt=0, le=3600)
    idle: float = Field(default=300.0, gt=0)
    cache: bool = False
    threads: int = Field(default=1, ge=1, le=256)
    policy: Policy = Policy()

    @model_validator(mode="after")
    def _ordered(self) -> Options:
        if self.min_replicas > self.max_replicas:
            raise Invalid(f"min_replicas is {self.min_replicas}, more than max_replicas, which is {self.max_replicas}.")
        return self


class DeploymentRequest(Config):
    """POST /api/deployments: create or move a deployment. `model` is a reference; an alias is pinned when this is handled.
    `replicas` is both the least and the most where those are not said. With `canary` (% of the calls) or `shadow` (% of the
    calls that it is given a copy of) the version is put on trial beside the one that serves. `gate` stays with the deployment:
    what any version but its baseline must be shown to keep; fields that are not said stay as they are; `lift_gate`: none.
    `override`: why an administrator lets a version pass that the gate refuses."""

    name: str = Field(pattern=NAME)
    model: str
    engine: str | None = None
    replicas: int = Field(default=1, ge=1, le=64)
    min_replicas: int | None = Field(default=None, ge=0, le=64)
    max_replicas: int | None = Field(default=None, ge=1, le=64)
    latency_target: float | None = Field(default=None, gt=0, le=3600)
    idle: float | None = Field(default=None, gt=0)
    cache: bool = False
    threads: int = Field(default=1, ge=1, le=256)
    policy: Policy = Policy()
    canary: int | None = Field(default=None, ge=1, le=99)
    shadow: int | None = Field(default=None, ge=1, le=100)
    gate: GatePolicy | None = None
    lift_gate: bool = False
    override: Reason | None = None

    @property
    def options(self) -> Options:
        """Raises `Invalid` where the least is more than the most."""
        least = self.replicas if self.min_replicas is None else self.min_replicas
        most = max(self.replicas, least) if self.max_replicas is None else self.max_replicas
        given = {} if self.idle is None else {"idle": self.idle}
        return Options(
            min_replicas=least,
            max_replicas=most,
            latency_target=self.latency_target,
            cache=self.cache,
            threads=self.threads,
            policy=self.policy,
            **given,
        )

    @property
    def asked_gate(self) -> GatePolicy | Literal["off"] | None:
        """Another gate, none any more ('off'), or the one that there is. Raises `Invalid` where two of these are asked for."""
        if self.lift_gate and self.gate is not None:
            raise Invalid("A gate is either set or lifted; leave one of 'gate' and 'lift_gate' out.")
        return "off" if self.lift_gate else self.gate

    @property
    def trial(self) -> tuple[TrialKind, int] | None:
        """The kind of trial and its share in percent. Raises `Invalid` where both are asked for."""
        if self.canary is not None and self.shadow is not None:
            raise Invalid("A release is either a canary or a shadow; leave one of them out.")
        if self.canary is not None:
            return TrialKind.canary, self.canary
        return None if self.shadow is None else (TrialKind.shadow, self.shadow)


class GateRequest(Config):
    """PUT /api/projects/{name}/gate: the policy for the project's variants; null: none."""

    gate: GatePolicy | None


class PromoteRequest(Config):
    """POST /api/deployments/{name}/promote; `override` as in `DeploymentRequest`."""

    override: Reason | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a replica says of itself: loading ('starting') or ready, its public tensors, or why it cannot serve; how many calls
    it holds, how many batches it has computed, how many bytes of memory it takes, how many rows it has answered and calls it
    has refused as too many, and how many are connected to it beside who asks (None: it does not say)."""

    state: ReplicaState
    metadata: Mapping[str, Any]
    error: ModelyardError | None = None
    depth: int = 0
    steps: int = 0
    memory: int = 0
    done: int = 0
    refused: int = 0
    peers: int | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ready replica as the router sees it."""

    token: str
    address: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A release on trial as a gateway sees it: `share` % of the calls, or of the calls' copies, while it has endpoints. `id`
    and `generation` name what is told of it."""

    kind: TrialKind
    id: int
    generation: int
    model: str
    version: str
    endpoints: tuple[Endpoint, ...]
    share: int
    policy: Policy

    @property
    def reference(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def key(self) -> tuple[int, int, int]:
        """What was compared under another share is another comparison."""
        return self.id, self.generation, self.share


class Seen(NamedTuple):
    """All that one gateway (`source`) saw of a trial: the calls that it answered or was given a copy of, and the evidence."""

    deployment: int
    generation: int
    share: int
    source: str
    calls: int
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Route:
    """A deployment in a gateway's memory. `identity` is what its answers depend on: two that answer alike in all have the same.
    `metadata` is what `GET /v2/models/{m}` answers about tensors:
    {'platform', 'inputs': [...], 'outputs': [...]}; `project` the one it belongs to; `wakes`: without a
    replica, a call makes one start."""

    project: str
    deployment: str
    model: str
    version: str
    state: DeploymentState
    endpoints: tuple[Endpoint, ...]
    metadata: Mapping[str, Any]
    error: str | None = None
    trial: Trial | None = None
    cache: bool = False
    wakes: bool = False
    identity: str = ""

    @property
    def reference(self) -> str:
        return f"{self.model}@{self.version}"

    @property
    def tried(self) -> str | None:
        """What tells the release on trial from the stable one, while it answers: its version's number, or 'model@number' where
        both have the same. None where nothing does."""
        trial = self.trial
        if trial is None or not trial.endpoints or trial.reference == self.reference:
            return None
        return trial.reference if trial.version == self.version else trial.version

    def called(self, trial: Trial | None) -> str:
        """What metrics call the version that answers: the stable one, or the one on trial."""
        return self.version if trial is None else self.tried or trial.version

    @property
    def versions(self) -> tuple[str, ...]:
        """Those that answer."""
        return (self.version,) if self.tried is None else (self.version, self.tried)

    def tries(self, version: str | None) -> bool:
        """Whether a version that is asked for is the one on trial, which is meant by 'model@number' too."""
        return self.tried is not None and self.trial is not None and version in (self.tried, self.trial.reference)
