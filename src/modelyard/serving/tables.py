"""Deployments (the desired state) and replicas (the actual one). The controller makes the second equal the first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import Base


class DeploymentRow(Base):
    """A service somebody asked for. `generation` grows with every change; `signature` is what the ready replica reported."""

    __tablename__ = "deployments"
    __table_args__ = (UniqueConstraint("project", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project: Mapped[str]
    name: Mapped[str]
    model: Mapped[str]
    version: Mapped[int]
    artefact: Mapped[str]
    engine: Mapped[str]
    task: Mapped[str]
    replicas: Mapped[int]
    generation: Mapped[int]
    state: Mapped[str]
    error: Mapped[str | None]
    failures: Mapped[int] = mapped_column(default=0)
    retry_at: Mapped[datetime | None]
    signature: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created: Mapped[datetime]
    updated: Mapped[datetime]


class ReplicaRow(Base):
    """One process that serves one generation of a deployment. `address` is its Unix socket."""

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
    pid: Mapped[int | None]
    started: Mapped[datetime]
    changed: Mapped[datetime]
    signature: Mapped[dict[str, Any]] = mapped_column(default=dict)


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
