"""How an attempt of a job ends in the books: everything that follows from it, in one transaction.

The scheduler calls these. A job that succeeded, the versions it made, their lineage and aliases, what it used and the note in
the audit log are written together or not at all.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from modelyard.catalogue import evaluations
from modelyard.catalogue import service as catalogue
from modelyard.catalogue.types import Parent, Version
from modelyard.db import Session, now
from modelyard.errors import Crashed, ModelyardError
from modelyard.jobs import records, restarts
from modelyard.jobs.active import Active, Output
from modelyard.jobs.types import Job, State
from modelyard.tenancy import ledger
from modelyard.tenancy.ledger import UsageEntry
from modelyard.tenancy.tables import Usage

# Where an output's metadata says what was found of it, or of the job's inputs.
EVALUATION = "evaluation"
# Attempts of one job that may end with control before it is the job that is suspected.
MOST_ABANDONED = 50


def starts_again(job: Job, error: ModelyardError, most: int, *, abandoned: bool, further: bool = False) -> bool:
    """Whether a job goes on after an attempt that ended in `error`. A gang that was wrong does not; one that died or hung does
    `most` times in a row: an attempt that came further than any before, by its checkpoint, costs none. Where control ended
    under it (`abandoned`), that is not counted, but not endless either: a job may be what ends control."""
    if abandoned:
        return job.abandoned < MOST_ABANDONED
    return isinstance(error, Crashed) and most > 0 and (further or job.setbacks < most)


def succeed(session: Session, active: Active, *, evaluates: bool = False) -> None:
    """The job succeeded: its outputs become versions of its target, and what they say of its inputs, if it is of a kind that
    `evaluates`, evidence. Raises what the catalogue refuses, and `Lost`."""
    job = active.job
    parents = [Parent(one.role, one.kind, one.name, one.number, one.artefact) for one in job.resolved]
    outputs = [_evaluated(session, job, one, parents) if evaluates else one for one in active.outputs.values()]
    made = [_register(session, job, output, parents) for output in outputs]
    chosen = next((shown["reference"] for shown in made if shown["alias"]), made[-1]["reference"] if made else None)
    _use(session, active, version=chosen or "", calls=1)
    _end(session, active, State.succeeded, outputs=made)


def fail(session: Session, active: Active, state: State, error: ModelyardError | None) -> None:
    """The job failed or was cancelled; nothing it published counts, but what it used does."""
    _use(session, active, calls=1, errors=int(state is State.failed))
    said = {"code": error.code, "message": error.message} if error else None
    _end(session, active, state, error=said)


def again(
    session: Session, active: Active, error: ModelyardError, most: int, *, abandoned: bool, rejoins: bool = False
) -> None:
    """The gang was lost in `error`, or `abandoned`: the job goes back to the queue, what was used so far is charged. Its
    children are cancelled, but where it `rejoins` them."""
    job = active.job
    setbacks = 0 if active.further else job.setbacks + (not abandoned)
    pause = 0.0 if abandoned else restarts.pause(setbacks)
    line = f"attempt {job.attempt} was lost and is started again{f' in {pause:g} s' if pause else ''}: {error.message}"
    why = f"{restarts.attempts(setbacks, most)}: {error.message}"
    _use(session, active, errors=1)
    if not rejoins:
        records.cancel_children(session, job.id)
    records.append(session, job.id, job.token, [*active.said, ("log", {"rank": 0, "text": line})])
    counts = {"cpu_us": job.cpu_us + active.cpu_us, "abandoned": job.abandoned + abandoned, "setbacks": setbacks}
    later = now() + timedelta(seconds=pause) if pause else None
    records.change(session, job.id, job.token, **counts, not_before=later, facts=dict(active.facts))
    records.requeue(session, job.id, job.token, why)


def back(session: Session, active: Active) -> None:
    """The gang made room for one of higher priority: the job goes back to the queue, to go on from its checkpoint. That is
    no attempt lost, and the time it waits is not its own."""
    job = active.job
    why = f"attempt {job.attempt} made room for a job of higher priority; it goes on from its checkpoint"
    _use(session, active)
    records.append(session, job.id, job.token, [*active.said, ("log", {"rank": 0, "text": why})])
    counts = {"preempted": job.preempted + 1, "setbacks": 0 if active.further else job.setbacks}
    used = {"spent": job.ran(now()), "started": None, "cpu_us": job.cpu_us + active.cpu_us}
    records.change(session, job.id, job.token, **counts, **used, facts=dict(active.facts))
    records.requeue(session, job.id, job.token, why)


def charged_us(session: Session, job: Job) -> int:
    """Microseconds of processor time that the ledger has of the job's attempts before this one."""
    sources = [_source(job, attempt) for attempt in range(1, job.attempt)]
    query = select(func.sum(Usage.cpu_us)).where(Usage.project == job.project, Usage.source.in_(sources))
    return int(session.scalar(query) or 0)


def _evaluated(session: Session, job: Job, output: Output, parents: list[Parent]) -> Output:
    """Record what an output says as an evaluation, of the inputs that the job was resolved to. The output goes on without it,
    so that a parent that adopts it does not say the same of inputs of its own."""
    if EVALUATION not in output.metadata:
        return output
    rest = dict(output.metadata)
    said, inputs = rest.pop(EVALUATION), {parent.role: parent for parent in parents}
    evaluations.record(session, job.project, job.id, said, inputs, output.manifest.hash)
    return replace(output, metadata=rest)


def _register(session: Session, job: Job, output: Output, parents: list[Parent]) -> dict[str, Any]:
    """Make one output a version of the job's target, or leave it an artefact where it is to be none. What there is to say of an
    artefact is kept with the job: a parent may adopt it."""
    catalogue.record_artefact(session, job.project, output.manifest)
    version: Version | None = None
    if job.target is not None and output.versioned:
        version = catalogue.register(
            session,
            job.project,
            kind=job.target.kind,
            name=job.target.name,
            artefact=output.manifest.hash,
            task=output.task,
            metadata={**output.metadata, **({"resumed": job.resume} if job.resume else {})},
            job=output.job or job.id,
            parents=parents,
        )
        if output.alias is not None:
            catalogue.set_alias(session, job.project, version.kind, version.name, output.alias, version.number)
    shown = {"name": output.name, "reference": None, "hash": output.manifest.hash, "alias": output.alias}
    if version is None:
        return {**shown, "task": output.task, "metadata": dict(output.metadata)}
    return {**shown, "reference": version.reference}


def _end(session: Session, active: Active, state: State, **values: Any) -> None:
    job = active.job
    records.cancel_children(session, job.id)
    records.append(session, job.id, job.token, active.said)
    changes = {name: value for name, value in active.changes.items() if name == "progress"}
    changes |= {"facts": dict(active.facts)} if active.facts else {}
    records.evolve(session, job.id, job.token, state, cpu_us=job.cpu_us + active.cpu_us, cancelling=False, **changes, **values)
    ledger.audit(session, job.project, job.key, f"job.{state.value}", job.id, {"kind": job.kind})


def _use(session: Session, active: Active, **counts: Any) -> None:
    job = active.job
    used = UsageEntry(
        project=job.project,
        source=_source(job, job.attempt),
        key=job.key,
        kind="job",
        subject=job.id,
        units=active.units,
        cpu_us=active.cpu_us,
        **counts,
    )
    ledger.record(session, [used])


def _source(job: Job, attempt: int) -> str:
    return f"job:{job.id}:{attempt}"
