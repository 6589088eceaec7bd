"""The values of the tenancy room: scopes, who is asking, and what is said over the wire to make keys and projects."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import Field, model_validator

from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.tenancy.quota import Quota

DEFAULT_PROJECT = "default"
# No dot: 'project.deployment' names another project's deployment.
PROJECT_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
_CENTURY = 100 * 366 * 86400.0


class Scope(IntEnum):
    """What a key may do. Scopes nest: each allows all that is below it."""

    infer = 1
    write = 2
    admin = 3


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking: a key of a project."""

    project: str
    key: str
    scope: Scope


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key; `key` is the whole text, known at this moment only."""

    id: str
    key: str
    scope: Scope

    def to_json(self) -> dict[str, str]:
        return {"id": self.id, "key": self.key, "scope": self.scope.name}


class QuotaRequest(Config):
    """PUT …/quota: `rate` calls a second, `burst` at once (None: what comes in a second). Without a rate there is no quota."""

    rate: float | None = Field(default=None, ge=1e-6, le=1e9)
    burst: int | None = Field(default=None, ge=1, le=10**9)

    @model_validator(mode="after")
    def _whole(self) -> QuotaRequest:
        if self.burst is not None and self.rate is None:
            raise Invalid("A quota of 'burst' calls at once needs its 'rate', calls a second.")
        return self

    @property
    def quota(self) -> Quota | None:
        return Quota.of(self.rate, self.burst)


class KeyRequest(QuotaRequest):
    """POST /api/keys. `expires` is in seconds from now; None: never. With a `rate` the key has a quota."""

    scope: Literal["infer", "write", "admin"]
    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    expires: float | None = Field(default=None, gt=0, le=_CENTURY)


class ProjectRequest(Config):
    """POST /api/projects."""

    name: str = Field(pattern=PROJECT_NAME)
