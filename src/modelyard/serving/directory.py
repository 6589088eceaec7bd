"""What gateways know of deployments: each as a `Route`, made anew only where its rows have changed.

A gateway reads them whenever the revision moves, which among many deployments it does several times a second, in a thread
beside the calls that it serves: making all anew took more of its time than those calls did (decision 30).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import JSON, ColumnElement, Row, String, and_, or_, select, type_coerce

from modelyard.db import Base, Session
from modelyard.serving import releases
from modelyard.serving.tables import DeploymentRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Endpoint, ReplicaState, Route, Trial, TrialKind

_JSON = ("options", "signature")
_IN_USE = and_(
    ReleaseRow.deployment == DeploymentRow.id,
    or_(
        ReleaseRow.generation == DeploymentRow.stable,
        ReleaseRow.generation == DeploymentRow.previous,
        ReleaseRow.generation == DeploymentRow.trial,
    ),
)
# What a route is made of, JSON as it is stored: a deployment's row, those of its releases in use, those of its ready replicas.
_Facts = tuple[Row[Any], list[Row[Any]], list[Row[Any]]]


class Directory:
    """Every project's deployments as they were last read. Used by one thread."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[_Facts, Route]] = {}

    def read(self, session: Session) -> list[Route]:
        """The routes now; one whose rows are as they were is the very object that it was."""
        found, known = _facts(session), self._known
        same = {number for number, facts in found.items() if number in known and known[number][0] == facts}
        self._known = {number: known[number] if number in same else (facts, _route(facts)) for number, facts in found.items()}
        return [route for _, route in self._known.values()]


def _facts(session: Session) -> dict[int, _Facts]:
    found: dict[int, _Facts] = {row.id: (row, [], []) for row in session.execute(_DEPLOYMENTS)}
    for place, question in ((1, _RELEASES), (2, _REPLICAS)):
        for row in session.execute(question):
            if row.deployment in found:
                found[row.deployment][place].append(row)
    return found


def _stored(table: type[Base], *names: str) -> list[ColumnElement[Any]]:
    columns = [table.__table__.columns[name] for name in names]
    return [type_coerce(c, String).label(c.name) if isinstance(c.type, JSON) else c for c in columns]


_DEPLOYMENTS = select(
    *_stored(DeploymentRow, "id", "project", "name", "stable", "previous", "trial", "trial_kind", "weight", "options")
).order_by(DeploymentRow.id)
_RELEASES = (
    select(
        *_stored(ReleaseRow, "deployment", "generation", "model", "version", "artefact", "engine"),
        *_stored(ReleaseRow, "state", "error", "settled", "signature"),
    )
    .join(DeploymentRow, _IN_USE)
    .order_by(ReleaseRow.generation)
)
_REPLICAS = (
    select(*_stored(ReplicaRow, "deployment", "generation", "token", "address", "signature"))
    .where(ReplicaRow.state == ReplicaState.ready)
    .order_by(ReplicaRow.started, ReplicaRow.token)
)


def _read(row: Row[Any]) -> Any:
    """A row with its JSON read, which databases with a type for it have done already."""
    values = row._asdict()
    values |= {name: json.loads(value) for name in _JSON if isinstance(value := values.get(name), str)}
    return SimpleNamespace(**values)


def _route(facts: _Facts) -> Route:
    """The release that answers, or is waited for."""
    row, known = _read(facts[0]), {release.generation: _read(release) for release in facts[1]}
    ready: dict[int, list[Any]] = {}
    for replica in map(_read, facts[2]):
        ready.setdefault(replica.generation, []).append(replica)
    stable, options = known[row.stable], releases.options_of(row)
    generation = releases.answering(row, stable, ready)
    serving, replicas = known[generation], ready.get(generation, [])
    return Route(
        project=row.project,
        deployment=row.name,
        model=serving.model,
        version=str(serving.version),
        state=DeploymentState.ready if replicas else DeploymentState(serving.state),
        endpoints=_endpoints(replicas),
        metadata=(replicas[0].signature if replicas else serving.signature) or {},
        error=stable.error,
        trial=_trial(row, known, ready),
        cache=options.cache,
        wakes=options.min_replicas == 0 and serving.state != DeploymentState.failed,
        identity=" ".join(map(str, releases.served(serving))),
    )


def _trial(row: Any, known: Mapping[int, Any], ready: Mapping[int, Sequence[Any]]) -> Trial | None:
    """The release on trial; without endpoints while it has no replica, so that what was seen of it is kept."""
    if row.trial is None:
        return None
    release = known[row.trial]
    return Trial(
        TrialKind(str(row.trial_kind)),
        row.id,
        row.trial,
        release.model,
        str(release.version),
        _endpoints(ready.get(row.trial, ())),
        row.weight,
        releases.policy_of(row),
    )


def _endpoints(replicas: Sequence[Any]) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(replica.token, replica.address) for replica in replicas)
