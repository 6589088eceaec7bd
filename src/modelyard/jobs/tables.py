"""The tables of the jobs room: one row a job, one row an event. Only `records` and `service` write them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import Base, now


class JobRow(Base):
    """A job. `token` is the lease of the attempt that runs it: whoever writes must hold it. `place` is the moment that counts
    in the queue (a child has its parent's). `resolved` are its inputs as pinned; `events` the number of its last event;
    `abandoned` how many of its attempts ended because control did, `preempted` how many made room for a job of higher priority;
    `setbacks` how many were lost since it last came further; `spent` the seconds it ran before it made room the last time;
    `not_before` when it may be started again. `resume` is the job from whose checkpoint it starts. `resources` are a rank's;
    `position` and `why` what it was last told of the queue."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "project", "created"),)
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"))
    key: Mapped[str]
    kind: Mapped[str]
    config: Mapped[dict[str, Any]]
    inputs: Mapped[dict[str, Any]]
    resolved: Mapped[list[Any]]
    target: Mapped[dict[str, Any] | None]
    ranks: Mapped[int]
    resources: Mapped[dict[str, Any]]
    timeout: Mapped[float | None]
    spent: Mapped[float] = mapped_column(default=0.0)
    max_restarts: Mapped[int | None]
    resume: Mapped[str | None]
    parent: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    priority: Mapped[int] = mapped_column(default=0)
    place: Mapped[datetime]
    state: Mapped[str] = mapped_column(index=True)
    cancelling: Mapped[bool] = mapped_column(default=False)
    attempt: Mapped[int] = mapped_column(default=0)
    abandoned: Mapped[int] = mapped_column(default=0)
    preempted: Mapped[int] = mapped_column(default=0)
    setbacks: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    token: Mapped[str | None]
    created: Mapped[datetime] = mapped_column(default=now)
    started: Mapped[datetime | None]
    finished: Mapped[datetime | None]
    error: Mapped[dict[str, Any] | None]
    progress: Mapped[dict[str, Any] | None]
    facts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    outputs: Mapped[list[Any]] = mapped_column(default=list)
    pids: Mapped[list[Any]] = mapped_column(default=list)
    cpu_us: Mapped[int] = mapped_column(BigInteger, default=0)
    position: Mapped[int | None]
    why: Mapped[str | None]
    events: Mapped[int] = mapped_column(default=0)


class ShareRow(Base):
    """What a project held of the cluster, on average over the window that was past `at` that moment: CPUs, GPUs, bytes."""

    __tablename__ = "job_shares"
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"), primary_key=True)
    cpus: Mapped[float]
    gpus: Mapped[float]
    memory: Mapped[float]
    at: Mapped[datetime]


class EventRow(Base):
    """Something that happened to a job, or that it said."""

    __tablename__ = "job_events"
    job: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    type: Mapped[str]
    body: Mapped[dict[str, Any]]
