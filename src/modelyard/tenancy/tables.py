"""The tables of the tenancy room. `usage` and `audit` are append-only: the database itself refuses to change them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, LargeBinary, Table, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import Base, append_only, now

# SQLite numbers rows by itself only where the key is declared INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")


class Project(Base):
    """A tenant. Its name is its identity: it is in every key of the object store and never changes. `gate`: what its variants
    must be shown to keep, as the serving room reads it; None where they need not."""

    __tablename__ = "projects"
    name: Mapped[str] = mapped_column(primary_key=True)
    created: Mapped[datetime] = mapped_column(default=now)
    rate: Mapped[float | None]
    burst: Mapped[int | None]
    gate: Mapped[dict[str, Any] | None]


class Key(Base):
    """An API key, without its secret. `rate` and `burst` are its quota, as a project's are: None where it has none."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(primary_key=True)
    project: Mapped[str] = mapped_column(ForeignKey("projects.name"), index=True)
    scope: Mapped[int]
    name: Mapped[str | None]
    digest: Mapped[str]
    created: Mapped[datetime] = mapped_column(default=now)
    expires: Mapped[datetime | None]
    revoked: Mapped[datetime | None]
    rate: Mapped[float | None]
    burst: Mapped[int | None]


class Usage(Base):
    """What was used, one row per piece of work that ended. `source` names that piece: told twice, it counts once."""

    __tablename__ = "usage"
    __table_args__ = (UniqueConstraint("project", "source"), Index(None, "project", "at"))
    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    project: Mapped[str]
    source: Mapped[str]
    key: Mapped[str]
    kind: Mapped[str]
    subject: Mapped[str]
    version: Mapped[str]
    calls: Mapped[int] = mapped_column(BigInteger)
    units: Mapped[int] = mapped_column(BigInteger)
    cpu_us: Mapped[int] = mapped_column(BigInteger)
    bytes_in: Mapped[int] = mapped_column(BigInteger)
    bytes_out: Mapped[int] = mapped_column(BigInteger)
    errors: Mapped[int] = mapped_column(BigInteger)
    at: Mapped[datetime]


class Audit(Base):
    """Who did what. `key` is empty where the platform acted by itself."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "project", "id"),)
    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    project: Mapped[str]
    key: Mapped[str]
    action: Mapped[str]
    subject: Mapped[str]
    detail: Mapped[dict[str, Any]]
    at: Mapped[datetime]


class Idempotency(Base):
    """A POST made under an Idempotency-Key. `token` fences: whoever took the row over has another. `done` is set in the
    transaction of the work itself; `status` and `body` are the answer, once there is one."""

    __tablename__ = "idempotency"
    project: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    route: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    request: Mapped[str]
    token: Mapped[str]
    created: Mapped[datetime] = mapped_column(index=True)
    claimed: Mapped[datetime]
    done: Mapped[bool]
    status: Mapped[int | None]
    media: Mapped[str | None]
    body: Mapped[bytes | None] = mapped_column(LargeBinary)


for _model in (Usage, Audit):
    assert isinstance(_model.__table__, Table)
    append_only(_model.__table__)
