"""The tables of the catalogue. Versions are written once; deleting leaves a tombstone, so that lineage still reads through
it and its number is never given out again. Edges say in full what they point to, whatever becomes of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, ForeignKeyConstraint, Index, Integer, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from modelyard.db import Base, now

# SQLite numbers rows by itself only where the key is declared INTEGER.
_Serial = BigInteger().with_variant(Integer, "sqlite")


class ArtefactRow(Base):
    """An artefact that the object store holds whole for a project."""

    __tablename__ = "artefacts"
    project: Mapped[str] = mapped_column(primary_key=True)
    hash: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    files: Mapped[int]
    created: Mapped[datetime] = mapped_column(default=now)


class NameRow(Base):
    """The last number given out under a name; it outlives the name's versions."""

    __tablename__ = "names"
    project: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[int]


class VersionRow(Base):
    """A version. `deleted` makes it a tombstone: hidden, without metadata, there for lineage alone."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("project", "kind", "name", "number"),
        ForeignKeyConstraint(["project", "artefact"], ["artefacts.project", "artefacts.hash"]),
    )
    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    project: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str]
    number: Mapped[int]
    artefact: Mapped[str]
    task: Mapped[str | None]
    # `metadata` is taken by SQLAlchemy on the class, not in the table.
    details: Mapped[dict[str, Any]] = mapped_column("metadata")
    job: Mapped[str | None] = mapped_column(index=True)
    created: Mapped[datetime] = mapped_column(default=now)
    deleted: Mapped[datetime | None]


class AliasRow(Base):
    """A movable name for a version."""

    __tablename__ = "aliases"
    project: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(ForeignKey("versions.id"), index=True)


class EdgeRow(Base):
    """One parent of a version: its reference and hash as they were."""

    __tablename__ = "lineage"
    child: Mapped[int] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    role: Mapped[str]
    kind: Mapped[str]
    name: Mapped[str | None]
    number: Mapped[int | None]
    artefact: Mapped[str]


class EvaluationRow(Base):
    """What a job found of a candidate beside a baseline on a split of a dataset: by artefact, so that it holds for every
    version of the same files and for no other; the references are as they were. `evidence` is read by whoever decides by it."""

    __tablename__ = "evaluations"
    __table_args__ = (Index("ix_evaluations_candidate", "project", "candidate", "baseline"),)
    id: Mapped[int] = mapped_column(_Serial, primary_key=True)
    project: Mapped[str]
    candidate: Mapped[str]
    baseline: Mapped[str]
    baseline_reference: Mapped[str]
    dataset: Mapped[str]
    dataset_reference: Mapped[str]
    split: Mapped[str]
    evidence: Mapped[dict[str, Any]]
    job: Mapped[str] = mapped_column(index=True)
    created: Mapped[datetime] = mapped_column(default=now)
