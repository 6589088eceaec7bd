"""Deployments as verbs: deploy, undeploy, show.

Called by `routes` (management). It writes desired state only; processes are the controller's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, select, update

from modelyard.catalogue import service as catalogue
from modelyard.catalogue.types import Version
from modelyard.db import Session, bump, now
from modelyard.engines.base import CARD, ENGINES, ModelCard
from modelyard.errors import Conflict, Invalid
from modelyard.serving import gating, releases
from modelyard.serving.observations import LOSSES, losses, shown, total
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentRequest, DeploymentState, Options, ReplicaState
from modelyard.serving.verdict import judge, unsteady
from modelyard.storage import Artefacts
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.types import Principal


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica as the API shows it. `note`: what it was not given."""

    token: str
    state: str
    pid: int | None
    version: str
    threads: int
    note: str | None


@dataclass(frozen=True, slots=True)
class TrialShown:
    """A release on trial: `share` in percent, what was compared so far, and what comes of it as the policy sees it."""

    kind: str
    model: str
    share: int
    state: str
    error: str | None
    calls: int
    evidence: dict[str, Any]
    verdict: str
    decision: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Deployment:
    """A deployment as the API shows it. `inputs` and `outputs` are known once a replica has been ready. `decision` is what the
    gate said of the version, None where it was not asked."""

    name: str
    model: str
    version: str
    state: str
    error: str | None
    engine: str
    task: str
    options: Options
    gate: dict[str, Any] | None
    decision: dict[str, Any] | None
    trial: TrialShown | None
    previous: str | None
    note: str | None
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
    return ModelCard.read(artefacts.read_range(project, version.artefact, CARD, 0, entry.size))


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
    """Write the desired state: a new deployment, another release of an old one, or one on trial beside it. The same request
    twice changes nothing, or tries again what failed; only how much of it is wanted changes no release."""
    row = releases.find(session, caller.project, request.name)
    engine, options, trial = choose_engine(card, request.engine), request.options, request.trial
    asked = (version.name, version.number, version.artefact, engine)
    if row is None:
        if trial is not None:
            raise Conflict(f"Deployment '{request.name}' serves nothing yet; a {trial[0]} is tried beside what serves.")
        row = DeploymentRow(project=caller.project, name=request.name, generation=0, stable=0, used=now(), created=now())
        row.id = _unused(session)
    gate = row.gate
    decision = gating.admit(session, caller, row, version, request.asked_gate, request.override)
    session.add(row)
    if trial is not None:
        releases.try_out(session, caller, row, asked, card.task, trial, decision)
        return _show(session, row)
    stable = session.get(ReleaseRow, (row.id, row.stable)) if row.stable else None
    same = stable is not None and stable.state != DeploymentState.failed and asked == releases.served(stable)
    wrong = stable is not None and stable.error is not None
    changed = wrong or row.options != options.model_dump(mode="json") or row.gate != gate
    if same and row.trial is None and not changed:
        return _show(session, row)
    row.options, row.updated, row.note = options.model_dump(mode="json"), now(), None
    if same and stable is not None and not releases.restarts(options, stable):
        stable.replicas = min(max(stable.replicas, options.min_replicas), options.max_replicas)
        releases.again(stable)
    else:
        stable = releases.write(session, row, asked, card.task)
        releases.move(session, row, row.generation)
    stable.decision = decision
    row.trial = row.trial_kind = None
    audit(
        session, caller.project, caller.key, "deployment.deploy", request.name, {"model": version.reference, "engine": engine}
    )
    bump(session)
    return _show(session, row)


def _unused(session: Session) -> Any:
    """The number of a new deployment; None: as the database counts. SQLite gives that of the last one again once it is gone,
    whose replicas may be leaving still: they would be taken for the new one's."""
    left = session.scalar(select(func.max(ReplicaRow.deployment))) or 0
    latest = session.scalar(select(func.max(DeploymentRow.id))) or 0
    return left + 1 if left > latest and session.get_bind().dialect.name == "sqlite" else None


def undeploy(session: Session, caller: Principal, name: str) -> None:
    """Forget a deployment; its replicas leave the routes now and are drained and ended by the controller. Raises `Forbidden`
    where it has a gate and the caller is no administrator."""
    row = releases.get(session, caller.project, name)
    gating.check_end(caller, row)
    gone = update(ReplicaRow).where(ReplicaRow.deployment == row.id).values(state=ReplicaState.draining, changed=now())
    session.execute(gone)
    for table in (ReleaseRow, ObservationRow):
        session.execute(delete(table).where(table.deployment == row.id))
    session.delete(row)
    audit(session, caller.project, caller.key, "deployment.undeploy", name)
    bump(session)


def get(session: Session, project: str, name: str) -> Deployment:
    return _show(session, releases.get(session, project, name))


def deployments(session: Session, project: str) -> list[Deployment]:
    rows = session.scalars(select(DeploymentRow).where(DeploymentRow.project == project).order_by(DeploymentRow.name)).all()
    return _shown(session, rows, project)


def in_use(session: Session, version: Version) -> str | None:
    """Why a version cannot be deleted: the deployment that serves it or may go back to it, or None."""
    query = (
        select(DeploymentRow.name)
        .join(ReleaseRow, ReleaseRow.deployment == DeploymentRow.id)
        .where(
            DeploymentRow.project == version.project,
            ReleaseRow.model == version.name,
            ReleaseRow.version == version.number,
            ReleaseRow.generation.in_((DeploymentRow.stable, DeploymentRow.trial, DeploymentRow.previous)),
        )
    )
    name = session.scalars(query.limit(1)).first() if version.kind == "model" else None
    if name is None:
        return _holds(session, version)
    return f"deployment '{name}'"


def _holds(session: Session, version: Version) -> str | None:
    """The deployment whose gate holds others against a model version, or on what was found on a dataset version."""
    field = "baseline" if version.kind == "model" else "dataset"
    rows = session.execute(select(DeploymentRow.name, DeploymentRow.gate).where(DeploymentRow.project == version.project))
    name = next((name for name, gate in rows if gate and gate.get(field) == version.reference), None)
    return f"the gate of deployment '{name}'" if name else None


def _show(session: Session, row: DeploymentRow) -> Deployment:
    session.flush()
    return _shown(session, [row], row.project)[0]


def _shown(session: Session, rows: Sequence[DeploymentRow], project: str) -> list[Deployment]:
    """With as many questions for many as for one."""
    ids = [row.id for row in rows]
    replicas: dict[int, list[ReplicaRow]] = {row.id: [] for row in rows}
    for replica in session.scalars(select(ReplicaRow).where(ReplicaRow.project == project).order_by(ReplicaRow.started)):
        if replica.deployment in replicas:  # else it is drained, and its deployment gone
            replicas[replica.deployment].append(replica)
    asked = select(ReleaseRow).where(ReleaseRow.deployment.in_(ids))
    known = {(release.deployment, release.generation): release for release in session.scalars(asked)}
    seen: dict[tuple[int, int], list[ObservationRow]] = {}
    for observation in session.scalars(select(ObservationRow).where(ObservationRow.deployment.in_(ids))):
        seen.setdefault((observation.deployment, observation.generation), []).append(observation)
    return [_one(row, replicas[row.id], known, seen) for row in rows]


def _one(
    row: DeploymentRow,
    replicas: Sequence[ReplicaRow],
    known: Mapping[tuple[int, int], ReleaseRow],
    seen: Mapping[tuple[int, int], Sequence[ObservationRow]],
) -> Deployment:
    stable = known[row.id, row.stable]
    before = known.get((row.id, row.previous)) if row.previous is not None else None
    options = releases.options_of(row)
    trial = None
    if row.trial is not None:
        tried, observed = known[row.id, row.trial], seen.get((row.id, row.trial), ())
        evidence, lost, policy, kind = total(observed), losses(observed), releases.policy_of(row), str(row.trial_kind)
        trial = TrialShown(
            kind,
            tried.reference,
            row.weight,
            tried.state,
            tried.error,
            sum(observation.calls for observation in observed),
            {**shown(evidence), LOSSES: [lost.n, lost.k]},
            unsteady(lost, tried.failures, policy, kind) or judge(evidence, policy, kind).reason,
            tried.decision,
        )
    return Deployment(
        name=row.name,
        model=stable.reference,
        version=str(stable.version),
        state=stable.state,
        error=stable.error,
        engine=stable.engine,
        task=stable.task,
        options=options,
        gate=row.gate,
        decision=stable.decision,
        trial=trial,
        previous=before.reference if before else None,
        note=row.note,
        replicas=[_replica(r, known.get((row.id, r.generation))) for r in replicas],
        inputs=stable.signature.get("inputs", []) if stable.signature else [],
        outputs=stable.signature.get("outputs", []) if stable.signature else [],
        created=row.created,
        updated=row.updated,
    )


def _replica(row: ReplicaRow, release: ReleaseRow | None) -> Replica:
    asked, note = release.threads if release is not None else row.threads, None
    if row.threads < asked:
        note = f"It computes in {row.threads} of the {asked} threads asked for: its machine had no more cores to give."
    return Replica(row.token, row.state, row.pid, str(row.version), row.threads, note)


def resolve(session: Session, project: str, reference: str) -> Version:
    """Pin a model reference for a deployment: aliases become numbers here."""
    return catalogue.resolve(session, project, "model", reference)
