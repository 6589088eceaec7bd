"""The management API of keys, projects, usage and audit; and the one module other rooms' routes take theirs from:
`Routes`, `Caller`, `answered`, `check_routes` and `install`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Query, Request

from modelyard.db import now
from modelyard.errors import Forbidden, Invalid
from modelyard.tenancy import ledger, service
from modelyard.tenancy.failures import install
from modelyard.tenancy.router import LARGEST_NUMBER, Caller, Routes, answered, check_routes
from modelyard.tenancy.types import DEFAULT_PROJECT, KeyRequest, Principal, ProjectRequest, QuotaRequest, Scope

__all__ = ["Caller", "Routes", "answered", "check_routes", "install", "routes"]

routes = Routes(prefix="/api", tags=["tenancy"])


@routes.get("/whoami", scope=Scope.infer)
def whoami(caller: Caller) -> dict[str, str]:
    """The key that asks: its id, project and scope."""
    return {"project": caller.project, "key": caller.key, "scope": caller.scope.name}


@routes.post("/keys", scope=Scope.admin, secret=True, status_code=201)
def create_key(request: Request, caller: Caller, body: KeyRequest) -> dict[str, str]:
    """Make a key of this project. `key` in the answer is shown once."""
    state = request.app.state
    expires = None if body.expires is None else now() + timedelta(seconds=body.expires)
    with state.db.begin() as session:
        made = service.create_key(session, caller.project, Scope[body.scope], state.pepper, body.name, expires, body.quota)
        detail = {"scope": body.scope, "name": body.name, **_said(body)}
        ledger.audit(session, caller.project, caller.key, "key.create", made.id, detail)
    state.keyring.refresh()
    return made.to_json()


@routes.get("/keys", scope=Scope.admin)
def keys(request: Request, caller: Caller) -> list[dict[str, Any]]:
    """The project's keys, revoked ones too, without their secrets."""
    with request.app.state.db.read() as session:
        return service.keys(session, caller.project)


@routes.delete("/keys/{key}", scope=Scope.admin)
def revoke_key(request: Request, caller: Caller, key: str) -> dict[str, Any]:
    """Revoke a key of this project; it is refused everywhere within a second."""
    with request.app.state.db.begin() as session:
        revoked = service.revoke_key(session, caller.project, key)
        ledger.audit(session, caller.project, caller.key, "key.revoke", key)
    request.app.state.keyring.refresh()
    return revoked


@routes.put("/keys/{key}/quota", scope=Scope.admin)
def set_key_quota(request: Request, caller: Caller, key: str, body: QuotaRequest) -> dict[str, Any]:
    """Give a key of this project another quota, or none; it holds within a second."""
    with request.app.state.db.begin() as session:
        changed = service.set_key_quota(session, caller.project, key, body.quota)
        ledger.audit(session, caller.project, caller.key, "key.quota", key, _said(body))
    return changed


@routes.put("/projects/{name}/quota", scope=Scope.admin)
def set_project_quota(request: Request, caller: Caller, name: str, body: QuotaRequest) -> dict[str, Any]:
    """Give a project another quota, or none. Its own administrators may tighten it, those of 'default' do as they like."""
    with request.app.state.db.begin() as session:
        changed = service.set_project_quota(session, caller.project, name, body.quota)
        ledger.audit(session, name, caller.key if caller.project == name else None, "project.quota", name, _said(body))
        if caller.project != name:
            ledger.audit(session, caller.project, caller.key, "project.quota", name, _said(body))
    return changed


@routes.post("/projects", scope=Scope.admin, secret=True, status_code=201)
def create_project(request: Request, caller: Caller, body: ProjectRequest) -> dict[str, Any]:
    """Make a project, with its first admin key, which is shown once. For administrators of the project 'default'."""
    _platform(caller)
    state = request.app.state
    with state.db.begin() as session:
        project = service.create_project(session, body.name)
        first = service.create_key(session, body.name, Scope.admin, state.pepper, "first administrator")
        ledger.audit(session, caller.project, caller.key, "project.create", body.name)
        ledger.audit(session, body.name, None, "key.create", first.id, {"scope": "admin", "name": "first administrator"})
    state.keyring.refresh()
    return {**project, "key": first.to_json()}


@routes.get("/projects", scope=Scope.admin)
def projects(request: Request, caller: Caller) -> list[dict[str, Any]]:
    """All projects. For administrators of the project 'default'."""
    _platform(caller)
    with request.app.state.db.read() as session:
        return service.projects(session)


@routes.get("/usage", scope=Scope.write)
def usage(
    request: Request,
    caller: Caller,
    since: datetime | None = None,
    until: datetime | None = None,
    group_by: str = ",".join(ledger.GROUPS),
) -> list[dict[str, Any]]:
    """What the project used in [since, until), summed by any of kind, subject, version, key (comma-separated)."""
    since, until = _in_utc(since), _in_utc(until)
    groups = [name for name in group_by.split(",") if name]
    with request.app.state.db.read() as session:
        return ledger.usage(session, caller.project, since, until, groups)


@routes.get("/audit", scope=Scope.admin)
def audit(
    request: Request,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int, Query(ge=1, le=LARGEST_NUMBER)] | None = None,
) -> list[dict[str, Any]]:
    """Who did what in this project: the newest `limit` entries, oldest first; `before` an entry's id pages back."""
    with request.app.state.db.read() as session:
        return ledger.audit_log(session, caller.project, limit, before)


def _said(body: QuotaRequest) -> dict[str, Any]:
    return {} if body.quota is None else body.quota._asdict()


def _in_utc(moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if moment.tzinfo is None:
        raise Invalid("'since' and 'until' need their zone, as in 2026-01-31T12:00:00Z.")
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Invalid("'since' and 'until' lie in the years 1 to 9999, in UTC.") from error


def _platform(caller: Principal) -> None:
    if caller.project != DEFAULT_PROJECT:
        raise Forbidden(f"Projects are made and listed by administrators of the project '{DEFAULT_PROJECT}'.")
