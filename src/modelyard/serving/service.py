"""Deployments as verbs: deploy, undeploy, show, and the routes a gateway follows.

Called by `routes` (management) and by `app` (a gateway's loader). It writes desired state only; processes are the controller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select, update

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.types import Version
from modelyard.db import Session, bump, now
from modelyard.engines.base import CARD, ENGINES, ModelCard
from modelyard.errors import Invalid, not_found
from modelyard.serving.tables import DeploymentRow, ReplicaRow
from modelyard.serving.types import DeploymentRequest, DeploymentState, Endpoint, ReplicaState, Route
from modelyard.storage import Artefacts
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.types import Principal


@dataclass(frozen=True, slots=True)
class Replica:
    token: str
    state: str
    pid: int | None
    version: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as the API shows it. `inputs` and `outputs` are known once a replica has been ready."""

    name: str
    model: str
    version: str
    state: str
    error: str | None
    engine: str
    task: str
    replicas: Sequence[Replica]
    inputs: Sequence[dict[str, Any]]
    outputs: Sequence[dict[str, Any]]
    created: datetime
    updated: datetime


def read_card(artefacts: Artefacts, project: str, version: Version) -> ModelCard:
    """The model card of a version, read from its verified artefact; outside any transaction."""
    entry = artefacts.manifest(project, version.artefact).files.get(CARD)
    if entry is None:
        raise Invalid(f"'{version.reference}' has no {CARD}: it cannot be deployed.")
    return ModelCard.model_validate_json(artefacts.read_range(project, version.artefact, CARD, 0, entry.size))


def choose_engine(card: ModelCard, asked: str | None) -> str:
    """The engine that will serve a version: the one asked for, else the card's best. Raises `Invalid` if it cannot."""
    if asked is not None and asked not in card.engines:
        raise Invalid(f"Engine '{asked}' cannot run this version; it runs on {', '.join(card.engines)}.")
    engine = asked or card.engines[0]
    if engine not in ENGINES.names():
        raise Invalid(
            f"This version ({card.task}) runs on {engine}, which serves nothing here; there are {', '.join(ENGINES.names())}. "
            "Fetch it, and load it as its README.md says."
        )
    return engine


def deploy(session: Session, caller: Principal, request: DeploymentRequest, version: Version, card: ModelCard) -> Deployment:
    """Write the desired state: a new deployment, or a new generation of an old one. The same request twice changes nothing."""
    row = _row(session, caller.project, request.name)
    engine = choose_engine(card, request.engine)
    wanted = (version.name, version.number, version.artefact, engine, request.replicas)
    if row is not None and wanted == (row.model, row.version, row.artefact, row.engine, row.replicas) and row.error is None:
        return _show(session, row)
    if row is None:
        row = DeploymentRow(project=caller.project, name=request.name, generation=0, created=now())
        session.add(row)
    row.model, row.version, row.artefact, row.engine, row.replicas = wanted
    row.task, row.updated = card.task, now()
    row.generation, row.state, row.error, row.failures, row.retry_at = (
        row.generation + 1,
        DeploymentState.pending,
        None,
        0,
        None,
    )
    session.flush()
    audit(
        session, caller.project, caller.key, "deployment.deploy", request.name, {"model": version.reference, "engine": engine}
    )
    bump(session)
    return _show(session, row)


def undeploy(session: Session, caller: Principal, name: str) -> None:
    """Forget a deployment; its replicas leave the routes now and are drained and ended by the controller."""
    row = _get(session, caller.project, name)
    gone = update(ReplicaRow).where(ReplicaRow.deployment == row.id).values(state=ReplicaState.draining, changed=now())
    session.execute(gone)
    session.delete(row)
    audit(session, caller.project, caller.key, "deployment.undeploy", name)
    bump(session)


def get(session: Session, project: str, name: str) -> Deployment:
    return _show(session, _get(session, project, name))


def deployments(session: Session, project: str) -> list[Deployment]:
    rows = session.scalars(select(DeploymentRow).where(DeploymentRow.project == project).order_by(DeploymentRow.name)).all()
    replicas: dict[int, list[ReplicaRow]] = {row.id: [] for row in rows}
    for replica in session.scalars(select(ReplicaRow).where(ReplicaRow.project == project).order_by(ReplicaRow.started)):
        if replica.deployment in replicas:  # else it is drained, and its deployment gone
            replicas[replica.deployment].append(replica)
    return [_shown(row, replicas[row.id]) for row in rows]


def in_use(session: Session, version: Version) -> str | None:
    """Why a version cannot be deleted: the deployment that serves it, or None."""
    query = select(DeploymentRow.name).where(
        DeploymentRow.project == version.project, DeploymentRow.model == version.name, DeploymentRow.version == version.number
    )
    name = session.scalars(query.limit(1)).first() if version.kind == "model" else None
    return f"deployment '{name}'" if name else None


def routes(session: Session) -> list[Route]:
    """Every project's deployments, with the ready replicas of the newest generation that has any."""
    ready: dict[int, list[ReplicaRow]] = {}
    for replica in session.scalars(select(ReplicaRow).where(ReplicaRow.state == ReplicaState.ready)):
        ready.setdefault(replica.deployment, []).append(replica)
    return [_route(row, ready.get(row.id, [])) for row in session.scalars(select(DeploymentRow))]


def _route(row: DeploymentRow, ready: Sequence[ReplicaRow]) -> Route:
    newest = max((replica.generation for replica in ready), default=row.generation)
    serving = [replica for replica in ready if replica.generation == newest]
    model, version = (serving[0].model, serving[0].version) if serving else (row.model, row.version)
    return Route(
        project=row.project,
        deployment=row.name,
        model=model,
        version=str(version),
        state=DeploymentState.ready if serving else DeploymentState(row.state),
        endpoints=tuple(Endpoint(replica.token, replica.address) for replica in serving),
        metadata=(serving[0].signature if serving else row.signature) or {},
        error=row.error,
    )


def _row(session: Session, project: str, name: str) -> DeploymentRow | None:
    return session.scalars(select(DeploymentRow).where(DeploymentRow.project == project, DeploymentRow.name == name)).first()


def _get(session: Session, project: str, name: str) -> DeploymentRow:
    row = _row(session, project, name)
    if row is None:
        raise not_found("deployment", name, session.scalars(select(DeploymentRow.name).where(DeploymentRow.project == project)))
    return row


def _show(session: Session, row: DeploymentRow) -> Deployment:
    replicas = session.scalars(select(ReplicaRow).where(ReplicaRow.deployment == row.id).order_by(ReplicaRow.started))
    return _shown(row, replicas.all())


def _shown(row: DeploymentRow, replicas: Sequence[ReplicaRow]) -> Deployment:
    return Deployment(
        name=row.name,
        model=f"{row.model}@{row.version}",
        version=str(row.version),
        state=row.state,
        error=row.error,
        engine=row.engine,
        task=row.task,
        replicas=[Replica(r.token, r.state, r.pid, str(r.version)) for r in replicas],
        inputs=row.signature.get("inputs", []) if row.signature else [],
        outputs=row.signature.get("outputs", []) if row.signature else [],
        created=row.created,
        updated=row.updated,
    )


def resolve(session: Session, project: str, reference: str) -> Version:
    """Pin a model reference for a deployment: aliases become numbers here."""
    return catalogue.resolve(session, project, "model", reference)
