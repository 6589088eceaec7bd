"""Names, versions and aliases: the verbs. Every one takes a session and a project; whoever opens the transaction (a route,
the scheduler that marks a job succeeded) decides what is atomic with it.

It knows hashes, not bytes: publish with `storage.Artefacts` first, then `record_artefact`, then `register`. It knows no
deployment either: `delete` asks a predicate whether something is in use.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import delete as remove
from sqlalchemy import func, select, update

from modelyard.catalogue.lineage import lineage
from modelyard.catalogue.tables import AliasRow, ArtefactRow, EdgeRow, NameRow, VersionRow
from modelyard.catalogue.types import ALIAS, NAME, Kind, Name, Parent, Version
from modelyard.db import Session, insert_new, now
from modelyard.errors import Conflict, Invalid, not_found
from modelyard.storage import Manifest

__all__ = [
    "InUse",
    "check_artefact",
    "delete",
    "delete_version",
    "lineage",
    "names",
    "record_artefact",
    "register",
    "resolve",
    "set_alias",
    "versions",
]

InUse = Callable[[Session, Version], str | None]
_LOOKED_AT = 1000  # artefacts among which the nearest to a wrong hash is sought
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


def record_artefact(session: Session, project: str, manifest: Manifest) -> None:
    """Note that the store holds this artefact for the project; noting it twice is fine."""
    row = {"project": project, "hash": manifest.hash, "size": manifest.size, "files": len(manifest.files), "created": now()}
    insert_new(session, ArtefactRow, [row])


def check_artefact(session: Session, project: str, digest: str) -> None:
    """Raises `NotFound` unless the artefact was recorded in this project, naming the newest that were."""
    if session.get(ArtefactRow, (project, digest)) is None:
        mine = select(ArtefactRow.hash).where(ArtefactRow.project == project)
        recorded = session.scalars(mine.order_by(ArtefactRow.created.desc(), ArtefactRow.hash).limit(_LOOKED_AT))
        raise not_found("artefact", digest[:80], recorded, newest=3)


def register(
    session: Session,
    project: str,
    *,
    kind: Kind,
    name: str,
    artefact: str,
    task: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    job: str | None = None,
    parents: Sequence[Parent] = (),
) -> Version:
    """Make the next version of a name, which needs not exist yet. Raises `Invalid` for a bad name or metadata that is not
    JSON, `NotFound` for an artefact that was not recorded in this project."""
    _check(name, NAME, f"{kind} name", "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter or digit")
    try:
        json.dumps(metadata or {}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Invalid(f"The metadata of {kind} '{name}' is not JSON (NaN and infinity are not): {error}.") from error
    check_artefact(session, project, artefact)
    row = VersionRow(
        project=project,
        kind=kind,
        name=name,
        number=_next_number(session, project, kind, name),
        artefact=artefact,
        task=task,
        details=dict(metadata or {}),
        job=job,
        created=now(),
    )
    session.add(row)
    session.flush()
    for position, parent in enumerate(parents):
        said = {name: getattr(parent, name) for name in ("role", "kind", "name", "number", "artefact")}
        session.add(EdgeRow(child=row.id, position=position, **said))
    session.flush()
    return _version(row, ())


def resolve(session: Session, project: str, kind: Kind, reference: str) -> Version:
    """The version that 'name' (its newest), 'name@3' or 'name@alias' stands for now. Raises `NotFound` with what there is."""
    name, at, which = reference.partition("@")
    found = versions(session, project, kind, name)
    if not at:
        return found[-1]
    for version in found:
        if which in version.aliases or (_NUMBER.fullmatch(which) and version.number == int(which)):
            return version
    there = [str(version.number) for version in found] + [alias for version in found for alias in version.aliases]
    raise not_found(f"version of {kind} '{name}'", which, there)


def versions(session: Session, project: str, kind: Kind, name: str) -> list[Version]:
    """All versions of a name, oldest first, with their aliases. Raises `NotFound`, saying what there is."""
    query = select(VersionRow).where(*_live(project, kind), VersionRow.name == name).order_by(VersionRow.number)
    rows = session.scalars(query).all()
    if not rows:
        raise not_found(kind, name, session.scalars(select(VersionRow.name).where(*_live(project, kind)).distinct()))
    aliases = _aliases(session, project, kind, name)
    return [_version(row, aliases.get(row.id, ())) for row in rows]


def names(session: Session, project: str, kind: Kind) -> list[Name]:
    """All names of a kind, in order."""
    counted = (
        select(func.max(VersionRow.id).label("id"), func.count().label("versions"))
        .where(*_live(project, kind))
        .group_by(VersionRow.name)
        .subquery()
    )
    query = select(VersionRow, counted.c.versions).join(counted, VersionRow.id == counted.c.id).order_by(VersionRow.name)
    pointers: dict[str, dict[str, int]] = {}
    joined = select(AliasRow, VersionRow.number).join(VersionRow, AliasRow.version == VersionRow.id)
    for alias, number in session.execute(joined.where(*_live(project, kind)).order_by(AliasRow.alias)):
        pointers.setdefault(alias.name, {})[alias.alias] = number
    found = []
    for row, count in session.execute(query):
        there = pointers.get(row.name, {})
        mine = tuple(alias for alias, number in there.items() if number == row.number)
        found.append(Name(_version(row, mine), count, there))
    return found


def set_alias(session: Session, project: str, kind: Kind, name: str, alias: str, number: int) -> Version:
    """Point an alias at a version, moving it if it is there. Raises `NotFound` for the version, `Invalid` for the alias."""
    _check(alias, ALIAS, "alias", "1 to 63 of a-z, 0-9, '.', '_' and '-', the first a letter")
    version = resolve(session, project, kind, f"{name}@{number}")
    session.merge(AliasRow(project=project, kind=kind, name=name, alias=alias, version=version.id))
    session.flush()
    return resolve(session, project, kind, version.reference)


def delete(session: Session, project: str, kind: Kind, name: str, in_use: InUse | None = None) -> list[int]:
    """Delete a name with all its versions and aliases; returns the numbers. Raises `Conflict` while `in_use` names a user
    of one of them. Artefacts stay in the store, numbers are never used again, lineage still reads through."""
    found = versions(session, project, kind, name)
    _bury(session, found, f"The {kind} '{name}'", in_use)
    return [version.number for version in found]


def delete_version(session: Session, project: str, kind: Kind, reference: str, in_use: InUse | None = None) -> Version:
    """Delete one version, as `delete` does all. Raises `Conflict`, too, while an alias points to it: what it stands for would
    change unseen."""
    version = resolve(session, project, kind, reference)
    if version.aliases:
        aliases = ", ".join(f"'{version.name}@{alias}'" for alias in version.aliases)
        raise Conflict(f"{aliases} points to {version.reference}. Point it to another version first.")
    _bury(session, [version], version.reference, in_use)
    return version


def _bury(session: Session, found: Sequence[Version], what: str, in_use: InUse | None) -> None:
    """Leave tombstones of versions that nobody uses, and no alias to them."""
    users = [f"{version.reference} by {user}" for version in found if in_use and (user := in_use(session, version))]
    if users:
        raise Conflict(f"{what} is in use: {', '.join(users)}. Stop what uses it first.")
    keys = [version.id for version in found]
    session.execute(remove(AliasRow).where(AliasRow.version.in_(keys)))
    gone = update(VersionRow).where(VersionRow.id.in_(keys))
    session.execute(gone.values({VersionRow.details: {}, VersionRow.deleted: now()}))


def _check(text: str, pattern: str, what: str, expected: str) -> None:
    if not re.fullmatch(pattern, text) or text.endswith("\n"):
        raise Invalid(f"'{text[:80]}' is no {what}: expected {expected}.")


def _next_number(session: Session, project: str, kind: Kind, name: str) -> int:
    """One more than any number given out before. The row is locked until the transaction ends."""
    insert_new(session, NameRow, [{"project": project, "kind": kind, "name": name, "last": 0}])
    mine = (NameRow.project == project, NameRow.kind == kind, NameRow.name == name)
    counted = update(NameRow).where(*mine).values(last=NameRow.last + 1).returning(NameRow.last)
    return session.scalars(counted, execution_options={"synchronize_session": False}).one()


def _live(project: str, kind: Kind) -> tuple[Any, ...]:
    return (VersionRow.project == project, VersionRow.kind == kind, VersionRow.deleted.is_(None))


def _aliases(session: Session, project: str, kind: Kind, name: str) -> dict[int, tuple[str, ...]]:
    here = (AliasRow.project == project, AliasRow.kind == kind, AliasRow.name == name)
    found: dict[int, tuple[str, ...]] = {}
    for row in session.scalars(select(AliasRow).where(*here).order_by(AliasRow.alias)):
        found[row.version] = (*found.get(row.version, ()), row.alias)
    return found


def _version(row: VersionRow, aliases: tuple[str, ...]) -> Version:
    kind = cast(Kind, row.kind)
    whole = (row.id, row.project, kind, row.name, row.number, row.artefact, row.task, row.details, row.job, row.created)
    return Version(*whole, aliases=aliases)
