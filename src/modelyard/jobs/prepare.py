"""Everything on this node that a gang needs before it starts. The scheduler runs it beside its loop, outside transactions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modelyard.db import now
from modelyard.errors import Damaged, NotFound
from modelyard.jobs import queue
from modelyard.jobs.active import Active
from modelyard.jobs.types import Gang, GangInput, Job
from modelyard.kinds import JobKind
from modelyard.plugins import Registry
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.storage.folders import remove


def prepare(active: Active, kinds: Registry[JobKind], artefacts: Artefacts, settings: Settings) -> Gang:
    """Verified inputs, the newest checkpoint of an earlier attempt, or of the job that this one resumes, a fresh work folder,
    the time that is left.

    Raises `NotFound` or `Damaged` for an input, `NotFound` where there is nothing to resume from, `Damaged` where no checkpoint
    is whole that was kept, `Unavailable` where the store fails.
    """
    job, kind = active.job, kinds.get(active.job.kind)
    work = active.folder / "work"
    inputs = {
        one.role: GangInput(one.reference, one.artefact, one.metadata, artefacts.local(job.project, one.artefact))
        for one in job.resolved
    }
    gang = Gang(
        token=active.token,
        job=job.id,
        run=kind.run,
        config_path=f"{kind.config.__module__}:{kind.config.__qualname__}",
        config=job.config,
        inputs=inputs,
        ranks=job.ranks,
        work=work,
        nodes=active.nodes,
        each=queue.own(kinds, kind.name, job.resources),
        memory=min(settings.job_memory, job.resources.memory or settings.job_memory),
        disk=settings.job_disk,
        files=settings.job_files,
        timeout=max(1.0, (job.timeout or settings.job_timeout) - job.ran(now())),
        heartbeat=settings.job_heartbeat,
        stays=not settings.cluster,
    )
    for folder in (gang.work, gang.kept):
        _empty(folder)
    return replace(gang, resume=_newest(job, artefacts, gang.kept / str(job.attempt)))


def _empty(folder: Path) -> None:
    """A folder with nothing in it: what an earlier attempt was shown stays the same folder for the next, in its place."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        remove(path)


def _newest(job: Job, artefacts: Artefacts, target: Path) -> Path | None:
    try:
        own = artefacts.latest_checkpoint(job.project, job.id, target) if job.attempt > 1 else None
        if own is not None or job.resume is None:
            return own
        found = artefacts.latest_checkpoint(job.project, job.resume, target)
    except Damaged as error:
        raise Damaged(f"No checkpoint of this job is whole: {error.message} Submit it anew.") from error
    if found is None:
        raise NotFound(f"The job {job.resume} has no checkpoint to go on from: it kept none, or those of it are gone by now.")
    return found
