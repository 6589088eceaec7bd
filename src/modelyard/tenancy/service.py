"""Projects and keys: the verbs. Routes and `up` call these inside one transaction; every change of keys bumps the revision,
by which gateways learn of it.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from sqlalchemy import select

from modelyard.db import Session, bump, now
from modelyard.errors import Conflict, Forbidden, Invalid, not_found
from modelyard.tenancy import access
from modelyard.tenancy.quota import Quota
from modelyard.tenancy.tables import Key, Project
from modelyard.tenancy.types import DEFAULT_PROJECT, PROJECT_NAME, CreatedKey, Scope


def bootstrap(session: Session, pepper: bytes) -> CreatedKey | None:
    """On an empty database: make the project 'default' and its first admin key. None where a project exists already."""
    if session.execute(select(Project.name).limit(1)).first() is not None:
        return None
    create_project(session, DEFAULT_PROJECT)
    return create_key(session, DEFAULT_PROJECT, Scope.admin, pepper, name="first administrator")


def create_project(session: Session, name: str) -> dict[str, Any]:
    """Make a project: {'name', 'created'}. Raises `Invalid` for a bad name, `Conflict` where there is one of that name."""
    if re.fullmatch(PROJECT_NAME, name) is None:
        raise Invalid(
            f"'{name[:80]}' is no project name: expected 1 to 63 of a-z, 0-9, '-' and '_', the first a letter or digit."
        )
    if session.get(Project, name) is not None:
        raise Conflict(f"There is a project '{name}' already.")
    project = Project(name=name, created=now())
    session.add(project)
    session.flush()
    return _project(project)


def projects(session: Session) -> list[dict[str, Any]]:
    """All projects, by name: {'name', 'created'}. For administrators of the project 'default' alone."""
    return [_project(project) for project in session.scalars(select(Project).order_by(Project.name))]


def create_key(
    session: Session,
    project: str,
    scope: Scope,
    pepper: bytes,
    name: str | None = None,
    expires: datetime | None = None,
    quota: Quota | None = None,
) -> CreatedKey:
    """Make a key of a project; its text is in the answer and nowhere else. Raises `NotFound` for an unknown project."""
    if session.get(Project, project) is None:
        raise not_found("project", project, ())
    if expires is not None and expires <= now():
        raise Invalid("The key would have expired already: 'expires' lies in the past.")
    key_id, secret, text = access.mint()
    digest = access.digest(pepper, secret)
    key = Key(id=key_id, project=project, scope=int(scope), name=name, digest=digest, created=now(), expires=expires)
    key.rate, key.burst = quota or (None, None)
    session.add(key)
    bump(session)
    session.flush()
    return CreatedKey(key_id, text, scope)


def keys(session: Session, project: str) -> list[dict[str, Any]]:
    """The project's keys, oldest first, without their secrets."""
    query = select(Key).where(Key.project == project).order_by(Key.created, Key.id)
    return [_key(key) for key in session.scalars(query)]


def revoke_key(session: Session, project: str, key: str) -> dict[str, Any]:
    """Revoke a key for good; revoking twice is once. Raises `NotFound` for a key that is not of this project, and `Conflict`
    for the project's last admin key, without which nobody could make another."""
    found = _found(session, project, key)
    if found.revoked is None:
        if found.scope == Scope.admin and not _other_admins(session, found):
            raise Conflict("This is the project's last admin key: make another before you revoke it.")
        found.revoked = now()
        bump(session)
        session.flush()
    return _key(found)


def set_key_quota(session: Session, project: str, key: str, quota: Quota | None) -> dict[str, Any]:
    """Give a key another quota; None takes it away. Raises `NotFound` for a key that is not of this project."""
    found = _found(session, project, key)
    found.rate, found.burst = quota or (None, None)
    bump(session)
    session.flush()
    return _key(found)


def set_project_quota(session: Session, by: str, name: str, quota: Quota | None) -> dict[str, Any]:
    """Give a project another quota, or none, on behalf of an administrator of the project `by`. Those of 'default' may do
    anything; its own may only tighten it (`Forbidden`), and know of no other (`NotFound`)."""
    found = session.get(Project, name, with_for_update=True) if by in (DEFAULT_PROJECT, name) else None
    if found is None:
        raise not_found("project", name, session.scalars(select(Project.name)) if by == DEFAULT_PROJECT else [by])
    present = Quota.of(found.rate, found.burst)
    if by != DEFAULT_PROJECT and present is not None and (quota is None or _is_looser(quota, present)):
        raise Forbidden(
            f"The quota of project '{name}' is {present.rate:g} calls a second, {present.burst} at once: its own "
            f"administrators may tighten it, those of the project '{DEFAULT_PROJECT}' may loosen it, too."
        )
    found.rate, found.burst = quota or (None, None)
    bump(session)
    session.flush()
    return _project(found)


def set_project_gate(session: Session, by: str, name: str, gate: dict[str, Any] | None) -> dict[str, Any]:
    """Keep another policy for a project's variants, or none, on behalf of an administrator of it or of 'default'. What it says
    is the serving room's to know."""
    found = session.get(Project, name, with_for_update=True) if by in (DEFAULT_PROJECT, name) else None
    if found is None:
        raise not_found("project", name, session.scalars(select(Project.name)) if by == DEFAULT_PROJECT else [by])
    found.gate = gate
    session.flush()
    return _project(found)


def project_gate(session: Session, name: str) -> dict[str, Any] | None:
    """The policy that is kept for a project's variants."""
    found = session.get(Project, name)
    return found.gate if found is not None else None


def key_name(session: Session, project: str, key: str) -> str | None:
    """What a key of the project is called, where it has a name."""
    return session.scalars(select(Key.name).where(Key.project == project, Key.id == key)).one_or_none()


def _is_looser(quota: Quota, present: Quota) -> bool:
    return quota.rate > present.rate or quota.burst > present.burst


def _found(session: Session, project: str, key: str) -> Key:
    found = session.scalars(select(Key).where(Key.project == project, Key.id == key).with_for_update()).one_or_none()
    if found is None:
        raise not_found("key", key, session.scalars(select(Key.id).where(Key.project == project, Key.revoked.is_(None))))
    return found


def _other_admins(session: Session, key: Key) -> bool:
    others = select(Key.expires).where(
        Key.project == key.project, Key.id != key.id, Key.scope == int(Scope.admin), Key.revoked.is_(None)
    )
    moment = now()
    return any(expires is None or expires > moment for expires in session.scalars(others.with_for_update()))


def _project(project: Project) -> dict[str, Any]:
    said = {name: getattr(project, name) for name in ("rate", "burst", "gate")}
    return {"name": project.name, "created": project.created.isoformat(), **said}


def _key(key: Key) -> dict[str, Any]:
    moments = {name: value.isoformat() if (value := getattr(key, name)) else None for name in ("created", "expires", "revoked")}
    return {"id": key.id, "scope": Scope(key.scope).name, "name": key.name, **moments, "rate": key.rate, "burst": key.burst}
