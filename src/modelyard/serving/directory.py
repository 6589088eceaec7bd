"""What gateways know of deployments: each as a `Route`, made anew only where its rows have changed.

A gateway reads them whenever the revision moves, which among many deployments it does several times a second, in a thread
beside the calls that it serves: making all anew took more of its time than those calls did (decision 30).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, ColumnElement, String, and_, or_, select, type_coerce

from modelyard.db import Base, Session
from modelyard.serving import releases
from modelyard.serving.tables import DeploymentRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Endpoint, ReplicaState, Route, Trial, TrialKind

# What a route is made of.
_OF_DEPLOYMENTS = ("id", "project", "name", "stable", "previous", "trial", "trial_kind", "weight", "options")
_OF_RELEASES = ("deployment", "generation", "model", "version", "artefact", "engine", "state", "error", "settled", "signature")
_OF_REPLICAS = ("deployment", "generation", "token", "address", "signature")
_IN_USE = and_(
    ReleaseRow.deployment == DeploymentRow.id,
    or_(
        ReleaseRow.generation == DeploymentRow.stable,
        ReleaseRow.generation == DeploymentRow.previous,
        ReleaseRow.generation == DeploymentRow.trial,
    ),
)
Releases = Mapping[tuple[int, int], ReleaseRow]
Ready = Mapping[tuple[int, int], Sequence[ReplicaRow]]
_Facts = list[tuple[Any, ...]]


class Directory:
    """Every project's deployments as they were last read. Used by one thread."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Facts, Route]] = {}

    def read(self, session: Session) -> list[Route]:
        """The routes now; one whose rows are as they were is the very object that it was."""
        found, known = _facts(session), self._known
        made = _made(session, [number for number, facts in found.items() if number not in known or known[number][0] != facts])
        self._known = {number: (facts, made.get(number) or known[number][1]) for number, facts in found.items()}
        return [route for _, route in self._known.values()]


def _facts(session: Session) -> dict[int, _Facts]:
    """By deployment its row, those of its releases in use and of its ready replicas, JSON as it is stored."""
    deployments = session.execute(select(*_stored(DeploymentRow, _OF_DEPLOYMENTS)).order_by(DeploymentRow.id))
    found: dict[int, _Facts] = {row.id: [tuple(row)] for row in deployments}
    used = select(*_stored(ReleaseRow, _OF_RELEASES)).join(DeploymentRow, _IN_USE).order_by(ReleaseRow.generation)
    ready = select(*_stored(ReplicaRow, _OF_REPLICAS)).where(ReplicaRow.state == ReplicaState.ready)
    for question in (used, ready.order_by(ReplicaRow.started, ReplicaRow.token)):
        for row in session.execute(question):
            if row.deployment in found:
                found[row.deployment].append(tuple(row))
    return found


def _stored(table: type[Base], names: Sequence[str]) -> list[ColumnElement[Any]]:
    columns = [table.__table__.columns[name] for name in names]
    return [type_coerce(c, String).label(c.name) if isinstance(c.type, JSON) else c for c in columns]


def _made(session: Session, numbers: Sequence[int]) -> dict[int, Route]:
    """The routes of these deployments: the stable release once it has as many ready replicas as are wanted, until then the one
    that served before."""
    if not numbers:
        return {}
    ready: dict[tuple[int, int], list[ReplicaRow]] = {}
    replicas = select(ReplicaRow).where(ReplicaRow.state == ReplicaState.ready, ReplicaRow.deployment.in_(numbers))
    for replica in session.scalars(replicas.order_by(ReplicaRow.started, ReplicaRow.token)):
        ready.setdefault((replica.deployment, replica.generation), []).append(replica)
    used = select(ReleaseRow).join(DeploymentRow, _IN_USE).where(ReleaseRow.deployment.in_(numbers))
    known = {(row.deployment, row.generation): row for row in session.scalars(used)}
    rows = session.scalars(select(DeploymentRow).where(DeploymentRow.id.in_(numbers)))
    return {row.id: _route(row, known, ready) for row in rows}


def _route(row: DeploymentRow, known: Releases, ready: Ready) -> Route:
    stable, options = known[row.id, row.stable], releases.options_of(row)
    serving, replicas = stable, ready.get((row.id, row.stable), ())
    if not stable.settled and row.previous is not None and (before := ready.get((row.id, row.previous))):
        serving, replicas = known[row.id, row.previous], before
    return Route(
        project=row.project,
        deployment=row.name,
        model=serving.model,
        version=str(serving.version),
        state=DeploymentState.ready if replicas else DeploymentState(stable.state),
        endpoints=_endpoints(replicas),
        metadata=(replicas[0].signature if replicas else stable.signature) or {},
        error=stable.error,
        trial=_trial(row, known, ready),
        cache=options.cache,
        wakes=options.min_replicas == 0 and stable.state != DeploymentState.failed,
        identity=" ".join(map(str, releases.served(serving))),
    )


def _trial(row: DeploymentRow, known: Releases, ready: Ready) -> Trial | None:
    """The release on trial; without endpoints while it has no replica, so that what was seen of it is kept."""
    if row.trial is None:
        return None
    release = known[row.id, row.trial]
    return Trial(
        TrialKind(str(row.trial_kind)),
        row.id,
        row.trial,
        release.model,
        str(release.version),
        _endpoints(ready.get((row.id, row.trial), ())),
        row.weight,
        releases.policy_of(row),
    )


def _endpoints(replicas: Sequence[ReplicaRow]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(replica.token, replica.address) for replica in replicas)
