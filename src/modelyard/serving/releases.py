"""Releases of a deployment as verbs: written, made the stable one, put on trial, promoted, rolled back.

`service` and `routes` call them for people, the controller where a trial ends by itself. They write desired state only, one
transaction each; the processes follow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Mapping
from typing import Any

from sqlalchemy import and_, delete, or_, select

from modelyard.catalogue import service as catalogue
from modelyard.db import Session, bump, now
from modelyard.errors import Conflict, not_found
from modelyard.serving import gating
from modelyard.serving.planning import Wanted
from modelyard.serving.tables import DeploymentRow, ObservationRow, ReleaseRow, ReplicaRow
from modelyard.serving.types import DeploymentState, Options, ReplicaState, TrialKind
from modelyard.serving.verdict import Policy, stables
from modelyard.tenancy.ledger import audit
from modelyard.tenancy.types import Principal

# What a release serves: the model's name and version, its artefact, the engine.
Served = tuple[str, int, str, str]


def get(session: Session, project: str, name: str) -> DeploymentRow:
    """Raises `NotFound`, saying what exists."""
    row = find(session, project, name)
    if row is None:
        raise not_found("deployment", name, session.scalars(select(DeploymentRow.name).where(DeploymentRow.project == project)))
    return row


def find(session: Session, project: str, name: str) -> DeploymentRow | None:
    return session.scalars(select(DeploymentRow).where(DeploymentRow.project == project, DeploymentRow.name == name)).first()


def try_out(
    session: Session,
    caller: Principal,
    row: DeploymentRow,
    asked: Served,
    task: str,
    trial: tuple[TrialKind, int],
    decision: dict[str, Any] | None,
) -> None:
    """Put a release on trial, in place of another; the same one again is given another share, and replicas for it. `decision`
    is the gate's."""
    kind, share = trial
    if (row.trial_kind, row.weight) != (kind, share):  # what was seen under another share cannot be added to
        session.execute(delete(ObservationRow).where(ObservationRow.deployment == row.id))
    there = session.get(ReleaseRow, (row.id, row.trial)) if row.trial is not None else None
    if there is None or there.state == DeploymentState.failed or asked != served(there):
        there = write(session, row, asked, task, share)
        row.trial = row.generation
    else:
        there.replicas = max(there.replicas, _size(session, row, share))
        again(there)
    there.decision = decision
    row.trial_kind, row.weight, row.note, row.updated = kind, share, None, now()
    name, number, *_ = asked
    audit(session, caller.project, caller.key, f"deployment.{kind}", row.name, {"model": f"{name}@{number}", "share": share})
    bump(session)


def write(session: Session, row: DeploymentRow, asked: Served, task: str, share: int = 100) -> ReleaseRow:
    """Write the next generation of a deployment, with replicas for `share` % of its calls."""
    session.flush()
    row.generation += 1
    model, version, artefact, engine = asked
    release = ReleaseRow(
        deployment=row.id,
        generation=row.generation,
        model=model,
        version=version,
        artefact=artefact,
        engine=engine,
        task=task,
        replicas=_size(session, row, share),
        target_us=_target(options_of(row)),
        threads=options_of(row).threads,
        state=DeploymentState.pending,
        created=now(),
    )
    session.add(release)
    session.flush()
    return release


def again(release: ReleaseRow) -> None:
    """What is wrong with it is forgotten, and what is missing of it tried again now."""
    release.error, release.failures, release.retry_at = None, 0, None


def _size(session: Session, row: DeploymentRow, share: int) -> int:
    """How many replicas `share` % of a deployment's calls need: of as many as answer them now, or must."""
    serves, options = _serving(session, row), options_of(row)
    there = min(serves.replicas, options.max_replicas) if serves is not None else 0
    return _part(max(options.min_replicas, there), share)


def _part(replicas: int, share: int) -> int:
    return max(1, math.ceil(replicas * share / 100))


def resize(session: Session, release: ReleaseRow, wanted: int) -> bool:
    """Want so many replicas of the release that answers, no fewer of the one that is to take over, as many where that is in
    trouble, and of one on trial as its share asks for. False where its number was changed meanwhile."""
    row = session.get(DeploymentRow, release.deployment)
    current = session.get(ReleaseRow, (release.deployment, release.generation))
    if row is None or current is None or current.replicas != release.replicas:
        return False
    current.replicas = wanted
    if not wanted:
        current.state, current.error, current.retry_at = DeploymentState.asleep, None, None
    for other in _known(session, row).values():
        if other.generation == row.trial:
            other.replicas = _part(wanted, row.weight)
        elif other.generation == row.stable and other.replicas and not other.settled:
            other.replicas = max(other.replicas if other.error is None else 1, wanted)
    bump(session)
    return True


def enough(session: Session, release: ReleaseRow, part: float = 0.0) -> bool:
    """Whether a release can take over though it is not whole: all there are of it are ready, and as many as must be, which are
    `min_replicas`, and that part of those wanted."""
    here = (ReplicaRow.deployment == release.deployment) & (ReplicaRow.generation == release.generation)
    states = session.scalars(select(ReplicaRow.state).where(here, ReplicaRow.state != ReplicaState.draining)).all()
    least = options_of(session.get_one(DeploymentRow, release.deployment)).min_replicas
    return set(states) == {ReplicaState.ready} and len(states) >= max(least, part * release.replicas)


def move(session: Session, row: DeploymentRow, generation: int) -> None:
    """Make a generation the stable one. The one that served stays known: until the new one is whole it answers, and `roll_back`
    comes back to it. It is the stable one, if it ever served; while that was never whole, the one before it, as long as that
    answers."""
    stable = session.get(ReleaseRow, (row.id, row.stable))
    if stable is not None and stable.signature and stable.generation != generation:
        ready = _ready(session, row)
        if stable.settled or row.previous is None or (row.previous not in ready and row.stable in ready):
            row.previous = stable.generation
    row.stable = generation
    kept = {row.stable, row.previous, row.trial}
    for old in session.scalars(select(ReleaseRow).where(ReleaseRow.deployment == row.id)):
        if old.generation not in kept:
            session.delete(old)


def promote(session: Session, caller: Principal, name: str, override: str | None = None) -> None:
    """Have the release on trial answer every call, if the gate lets it. Its replicas take over once they are as many as serve
    now."""
    row = get(session, caller.project, name)
    if row.trial is None:
        raise Conflict(f"Nothing is on trial at deployment '{name}'; deploy a version with a canary or a shadow first.")
    promoted, serves = session.get_one(ReleaseRow, (row.id, row.trial)), _serving(session, row)
    assert serves is not None
    version = catalogue.resolve(session, caller.project, "model", promoted.reference)
    promoted.decision = gating.admit(session, caller, row, version, override=override)
    promoted.settled = _ready(session, row)[promoted.generation] >= max(1, serves.replicas)
    promoted.replicas = max(promoted.replicas, serves.replicas)
    move(session, row, promoted.generation)
    row.trial, row.trial_kind, row.updated, row.note = None, None, now(), None
    audit(session, caller.project, caller.key, "deployment.promote", name, {"model": promoted.reference})
    bump(session)


def roll_back(session: Session, caller: Principal, name: str) -> None:
    """End the trial, if there is one; else go back to the release that served before. Raises `Conflict` where there is none."""
    row = get(session, caller.project, name)
    if row.trial is None and row.previous is None:
        raise Conflict(f"Deployment '{name}' has served nothing else before; there is nothing to go back to.")
    if row.trial is not None:
        end_trial(session, row, "The trial was ended by hand.")
    else:
        assert row.previous is not None
        previous = session.get_one(ReleaseRow, (row.id, row.previous))
        stable = session.get_one(ReleaseRow, (row.id, row.stable))
        again(previous)
        previous.settled = not stable.settled and row.previous in _ready(session, row)  # it answers, and goes on
        if not previous.settled:
            previous.state, previous.replicas = DeploymentState.pending, max(1, stable.replicas)
        row.stable, row.previous = row.previous, row.stable
        row.note = f"Rolled back from {stable.reference} by hand."
        row.updated = now()
    audit(session, caller.project, caller.key, "deployment.rollback", name, {"note": row.note})
    bump(session)


def end_trial(session: Session, row: DeploymentRow, why: str) -> None:
    """No release is on trial any more, because of `why`; from a gateway's next look on calls go to the stable one alone."""
    gone = session.get(ReleaseRow, (row.id, row.trial))
    row.trial = row.trial_kind = None
    row.note, row.updated = f"{gone.reference}: {why}" if gone else why, now()


def wake(session: Session, project: str, name: str) -> None:
    """Somebody calls a deployment: it is in use, and where it is asleep it wakes; while its stable release was never whole and
    is in trouble, so does the one before."""
    row = get(session, project, name)
    stable, *before = _asked(row, _known(session, row))
    asked = [stable, *before] if stable.error is not None else [stable]
    asleep = [one for one in asked if not one.replicas and one.state != DeploymentState.failed]
    if asleep:  # its turn, where there is not room for all, is that of who asked first
        row.used = now()
        for release in asleep:
            release.replicas, release.state = 1, DeploymentState.pending
        bump(session)


def put_to_sleep(session: Session, row: DeploymentRow) -> bool:
    """Want no replica of a deployment until somebody calls it; a release that has failed still says so. False where none is
    wanted."""
    asked = [one for one in _asked(row, _known(session, row)) if one.state != DeploymentState.failed]
    if not any(release.replicas for release in asked):
        return False
    for release in asked:
        release.replicas, release.state, release.retry_at = 0, DeploymentState.asleep, None
    bump(session)
    return True


def answering(row: DeploymentRow, stable: ReleaseRow, ready: Container[int]) -> int:
    """The generation that calls go to, or wait for, where those in `ready` have a replica: the stable one once it was whole,
    until then the one before, if it has one; and where neither has, the stable one unless it has failed."""
    if stable.settled or row.previous is None:
        return row.stable
    waits = row.stable not in ready and stable.state == DeploymentState.failed
    return row.previous if row.previous in ready or waits else row.stable


def _serving(session: Session, row: DeploymentRow) -> ReleaseRow | None:
    """The release that calls go to, or wait for; None of a deployment that has none yet."""
    stable = session.get(ReleaseRow, (row.id, row.stable))
    return stable and session.get_one(ReleaseRow, (row.id, answering(row, stable, _ready(session, row))))


def _ready(session: Session, row: DeploymentRow) -> Counter[int]:
    """How many ready replicas the generations have that have any."""
    here = (ReplicaRow.deployment == row.id) & (ReplicaRow.state == ReplicaState.ready)
    return Counter(session.scalars(select(ReplicaRow.generation).where(here)))


def _known(session: Session, row: DeploymentRow) -> dict[int, ReleaseRow]:
    return {one.generation: one for one in session.scalars(select(ReleaseRow).where(ReleaseRow.deployment == row.id))}


def _asked(row: DeploymentRow, known: Mapping[int, ReleaseRow]) -> list[ReleaseRow]:
    """The stable release, and the one before it while that was never whole."""
    stable = known[row.stable]
    return [stable] if stable.settled or row.previous is None else [stable, known[row.previous]]


def options_of(row: DeploymentRow) -> Options:
    return Options.model_validate(row.options)


def policy_of(row: DeploymentRow) -> Policy:
    """How the release on trial is judged: as the deployment says, at the share of the calls that it is given."""
    part = row.weight / 100
    share = part / (1 + part) if row.trial_kind == TrialKind.shadow else part
    return options_of(row).policy.model_copy(update={"stables_per_trial": stables(share)})


def served(row: ReleaseRow) -> Served:
    return row.model, row.version, row.artefact, row.engine


def _target(options: Options) -> int | None:
    return None if options.latency_target is None else int(options.latency_target * 1e6)


def restarts(options: Options, row: ReleaseRow) -> bool:
    """Whether these options must be told to a replica when it starts."""
    return (_target(options), options.threads) != (row.target_us, row.threads)


def astir(
    session: Session, noted: str
) -> tuple[dict[int, DeploymentRow], dict[int, dict[int, ReleaseRow]], dict[int, list[ReplicaRow]]]:
    """Deployments for which there may be something to do, by id their releases by generation, and all replicas, by the id of
    their deployment, which may be gone. Most of many are asleep: without replicas, and none is wanted. `noted`: an error that
    is looked at again, whatever else there is."""
    stirs = or_(
        ReleaseRow.replicas > 0, ReleaseRow.retry_at.is_not(None), ReleaseRow.error == noted, ReleaseRow.settled.is_(False)
    )
    stable = and_(ReleaseRow.deployment == DeploymentRow.id, ReleaseRow.generation == DeploymentRow.stable)
    here = or_(
        select(ReleaseRow.deployment).where(stable, stirs).correlate(DeploymentRow).exists(),
        DeploymentRow.id.in_(select(ReplicaRow.deployment)),
        DeploymentRow.trial.is_not(None),
        DeploymentRow.options["min_replicas"].as_integer() > 0,
    )
    deployments = {row.id: row for row in session.scalars(select(DeploymentRow).where(here))}
    known: dict[int, dict[int, ReleaseRow]] = {}
    for release in session.scalars(select(ReleaseRow).where(ReleaseRow.deployment.in_(deployments))):
        known.setdefault(release.deployment, {})[release.generation] = release
    replicas: dict[int, list[ReplicaRow]] = {key: [] for key in deployments}
    for row in session.scalars(select(ReplicaRow)):
        replicas.setdefault(row.deployment, []).append(row)
    return deployments, known, replicas


def wanted(row: DeploymentRow | None, known: Mapping[int, ReleaseRow]) -> list[Wanted]:
    """The releases that should run: the stable one, the one before it while that is not whole, one on trial."""
    if row is None:
        return []
    asked = _asked(row, known)
    if row.trial is not None:
        asked.append(known[row.trial])
    return [Wanted(one.generation, one.replicas, DeploymentState(one.state), one.retry_at, one.settled) for one in asked]


def replica(token: str, project: str, release: ReleaseRow, address: str) -> ReplicaRow:
    """A replica that is to be started."""
    return ReplicaRow(
        token=token,
        project=project,
        deployment=release.deployment,
        generation=release.generation,
        model=release.model,
        version=release.version,
        state=ReplicaState.starting,
        address=address,
        started=now(),
        changed=now(),
        signature={},
    )
