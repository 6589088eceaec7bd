"""The values of the serving room: what a deployment is, what the gateway knows of a request, and what a replica says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import Field

from modelyard.errors import ModelyardError
from modelyard.jobs.types import NAME
from modelyard.kinds import Config


class DeploymentState(StrEnum):
    pending = "pending"
    ready = "ready"
    failed = "failed"


class ReplicaState(StrEnum):
    starting = "starting"
    ready = "ready"
    draining = "draining"


class DeploymentRequest(Config):
    """POST /api/deployments: create or move a deployment. `model` is a reference; an alias is pinned when this is handled."""

    name: str = Field(pattern=NAME)
    model: str
    engine: str | None = None
    replicas: int = Field(default=1, ge=1, le=64)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the gateway must know of a request before anyone decodes it. `verb` is the door's word for what is asked
    ('infer'); `version` None means whatever the deployment serves; `units` the most it may use, None where unknown."""

    door: str
    verb: str
    deployment: str
    version: str | None
    stream: bool = False
    units: int | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """What a replica says of itself: loading ('starting') or ready, its public tensors, or why it cannot serve."""

    state: ReplicaState
    metadata: Mapping[str, Any]
    error: ModelyardError | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A ready replica as the router sees it."""

    token: str
    address: str


@dataclass(frozen=True, slots=True)
class Route:
    """A deployment in a gateway's memory. `metadata` is what `GET /v2/models/{m}` answers about tensors:
    {'platform', 'inputs': [...], 'outputs': [...]}; `owner` the project it belongs to."""

    project: str
    deployment: str
    model: str
    version: str
    state: DeploymentState
    endpoints: tuple[Endpoint, ...]
    metadata: Mapping[str, Any]
    error: str | None = None
