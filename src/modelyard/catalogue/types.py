"""The values of the catalogue: versions, what they were made from, and what is said over the wire about aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from modelyard.kinds import Config

Kind = Literal["dataset", "model"]
NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
# An alias starts with a letter: 'digits@3' is always a number.
ALIAS = r"^[a-z][a-z0-9._-]{0,62}$"


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable artefact under a name. `created` is aware, in UTC; `job` made it, None for what was imported directly."""

    id: int
    project: str
    kind: Kind
    name: str
    number: int
    artefact: str
    task: str | None
    metadata: Mapping[str, Any]
    job: str | None
    created: datetime
    aliases: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.number}"

    def to_json(self) -> dict[str, Any]:
        """{'kind', 'name', 'version', 'reference', 'artefact', 'task', 'metadata', 'job', 'created', 'aliases'}."""
        shown = {name: getattr(self, name) for name in ("kind", "name", "reference", "artefact", "task", "job")}
        rest = {"metadata": dict(self.metadata), "created": self.created.isoformat(), "aliases": list(self.aliases)}
        return {**shown, "version": self.number, **rest}


@dataclass(frozen=True, slots=True)
class Parent:
    """What a version was made from, in which role ('dataset', 'model', 'code', …). An artefact that is no version of
    anything has kind 'artefact' and neither name nor number."""

    role: str
    kind: Literal["dataset", "model", "artefact"]
    name: str | None
    number: int | None
    artefact: str

    @property
    def reference(self) -> str:
        return f"artefact:{self.artefact}" if self.name is None else f"{self.name}@{self.number}"

    @classmethod
    def of(cls, role: str, version: Version) -> Parent:
        return cls(role, version.kind, version.name, version.number, version.artefact)


@dataclass(frozen=True, slots=True)
class Name:
    """A name with its newest version, how many versions there are, and where its aliases point (alias → number)."""

    latest: Version
    versions: int
    aliases: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """{'kind', 'name', 'latest', 'task', 'versions', 'aliases', 'created'}; `latest` is a number."""
        shown = {"kind": self.latest.kind, "name": self.latest.name, "latest": self.latest.number, "task": self.latest.task}
        return {**shown, "versions": self.versions, "aliases": dict(self.aliases), "created": self.latest.created.isoformat()}


class AliasRequest(Config):
    """PUT …/aliases/{alias}: the number of the version that the alias is to name."""

    version: int = Field(ge=1)
