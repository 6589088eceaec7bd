"""Deployments and their releases (the desired state), replicas (the actual one), and what was seen of them.

The controller makes the second equal the first.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import Base


class DeploymentRow(Base):
    """A service somebody asked for. `generation` grows with every release; `stable` is the one that answers, `previous` the one
    before it, `trial` one on trial beside it, if any: `trial_kind` 'canary' is given `weight` % of the calls, 'shadow' a copy
    of them. `options` are `Options` as JSON; `gate` its `GatePolicy`, if it has one; `used` is when it was last called."""

    __tablename__ = "deployments"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    name: Mapped[str]
    generation: Mapped[int]
    stable: Mapped[int]
    previous: Mapped[int | None]
    trial: Mapped[int | None]
    trial_kind: Mapped[str | None]
    weight: Mapped[int] = mapped_column(default=0)
    options: Mapped[dict[str, Any]] = mapped_column(default=dict)
    gate: Mapped[dict[str, Any] | None]
    note: Mapped[str | None]
    used: Mapped[datetime]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class ReleaseRow(Base):
    """One generation of a deployment: a version on an engine. `replicas` is how many are wanted of it now; `settled`: all of
    them were ready once, so that nothing older is needed; `signature` what a ready one reported; `threads` how many each may
    compute in; `decision` what the gate said of it, None where it was not asked."""

    __tablename__ = "releases"

    deployment: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    model: Mapped[str]
    version: Mapped[int]
    artefact: Mapped[str]
    engine: Mapped[str]
    task: Mapped[str]
    replicas: Mapped[int]
    target_us: Mapped[int | None]
    threads: Mapped[int] = mapped_column(default=1)
    settled: Mapped[bool] = mapped_column(default=False)
    state: Mapped[str]
    error: Mapped[str | None]
    failures: Mapped[int] = mapped_column(default=0)
    retry_at: Mapped[datetime | None]
    signature: Mapped[dict[str, Any]] = mapped_column(default=dict)
    decision: Mapped[dict[str, Any] | None]
    created: Mapped[datetime]

    @property
    def reference(self) -> str:
        return f"{self.model}@{self.version}"


class ObservationRow(Base):
    """What one gateway (`source`) saw of a trial beside the stable release: running totals, as `verdict.Evidence` has them. In
    the row of posted labels `waiting` are those that have no partner yet."""

    __tablename__ = "observations"

    deployment: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    source: Mapped[str] = mapped_column(primary_key=True)
    calls: Mapped[int] = mapped_column(BigInteger, default=0)
    evidence: Mapped[dict[str, Any]] = mapped_column(default=dict)
    waiting: Mapped[dict[str, Any]] = mapped_column(default=dict)


class MeasureRow(Base):
    """What was measured of an artefact on an engine on a node: bytes that a replica of it takes, rows of its best batch
    and µs that each of them takes in it."""

    __tablename__ = "measures"

    artefact: Mapped[str] = mapped_column(primary_key=True)
    engine: Mapped[str] = mapped_column(primary_key=True)
    node: Mapped[str] = mapped_column(primary_key=True)
    memory: Mapped[int] = mapped_column(BigInteger, default=0)
    rows: Mapped[int] = mapped_column(default=0)
    us_a_row: Mapped[float] = mapped_column(default=0.0)


class ReplicaRow(Base):
    """One process that serves one generation of a deployment. `address`: where it is reached (`dial`); `threads`: how many it
    was given to compute in."""

    __tablename__ = "replicas"
    __table_args__ = (Index("ix_replicas_deployment", "project", "deployment"),)

    token: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str]
    deployment: Mapped[int]
    generation: Mapped[int]
    model: Mapped[str]
    version: Mapped[int]
    state: Mapped[str]
    address: Mapped[str]
    threads: Mapped[int] = mapped_column(default=1)
    pid: Mapped[int | None]
    started: Mapped[datetime]
    changed: Mapped[datetime]
    signature: Mapped[dict[str, Any]] = mapped_column(default=dict)

    @property
    def reference(self) -> str:
        return f"{self.model}@{self.version}"


class MeterRow(Base):
    """What was settled of one slot of a gateway's meter file: the counters up to which the ledger has it."""

    __tablename__ = "meters"

    file: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int] = mapped_column(BigInteger)
    calls: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)
    cpu_us: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
