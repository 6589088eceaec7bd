"""The management API of jobs. It translates between HTTP and `service`, and streams a job's events as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from modelyard.errors import CallerError
from modelyard.jobs import service
from modelyard.jobs.types import Job, Submission
from modelyard.tenancy.router import LARGEST_NUMBER, authorise
from modelyard.tenancy.routes import Caller, Routes, answered
from modelyard.tenancy.types import Scope

Look = tuple[Job, Sequence[dict[str, Any]]]
routes = Routes(prefix="/api/jobs", tags=["jobs"])

# Seconds between two looks for new events of a followed job: at first, and most, after so many times as long without any.
# Its end is mostly told sooner: by this process's scheduler.
_LOOK, _LAZY, _TIMES = 0.1, 0.5, 4.0
# Seconds between two blank lines that keep the connection alive.
_ALIVE = 15.0


@routes.post("", scope=Scope.write, status_code=201)
def submit(request: Request, caller: Caller, body: Submission) -> dict[str, Any]:
    """Queue a job of a kind: its config, its inputs (role → reference) and what its outputs become versions of."""
    state = request.app.state
    nodes = state.executor.nodes()  # a cluster is asked before the database is held
    with state.db.begin() as session:
        job = service.submit(session, caller, body, state.kinds, nodes=nodes)
        shown = answered(request, job.to_json())
    state.scheduler.wake()
    return shown


@routes.get("", scope=Scope.write)
def jobs(
    request: Request, caller: Caller, state: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 1000
) -> list[dict[str, Any]]:
    """The project's jobs, newest first."""
    with request.app.state.db.read() as session:
        return [job.to_json() for job in service.jobs(session, caller.project, state, limit)]


@routes.get("/underway", scope=Scope.write)
def underway(request: Request, caller: Caller, first: Annotated[int, Query(ge=0, le=1000)] = 20) -> dict[str, Any]:
    """The project's jobs on their way: all that start or run, the first that wait, and how many there are of each state."""
    with request.app.state.db.read() as session:
        found, counts = service.underway(session, caller.project, first)
    return {"jobs": [job.to_json() for job in found], "counts": counts}


@routes.get("/{job}", scope=Scope.write)
def show(request: Request, caller: Caller, job: str) -> dict[str, Any]:
    """One job."""
    with request.app.state.db.read() as session:
        return service.get(session, caller.project, job).to_json()


@routes.post("/{job}/cancel", scope=Scope.write)
def cancel(request: Request, caller: Caller, job: str) -> dict[str, Any]:
    """Ask a job to stop; one that has ended stays as it is."""
    state = request.app.state
    with state.db.begin() as session:
        shown = answered(request, service.cancel(session, caller, job).to_json())
    state.scheduler.wake()
    return shown


@routes.get("/{job}/events", scope=Scope.write)
def events(
    request: Request, caller: Caller, job: str, after: Annotated[int, Query(ge=0, le=LARGEST_NUMBER)] = 0, follow: bool = False
) -> StreamingResponse:
    """What happened to a job from event number `after` on, one JSON object a line; with `follow` until its end."""
    first = _look(request, job, after)
    return StreamingResponse(_lines(request, job, first, after, follow=follow), media_type="application/x-ndjson")


async def _lines(request: Request, job: str, look: Look, after: int, *, follow: bool) -> AsyncIterator[str]:
    """The one asynchronous function of the room: a follower that waits must not hold one of control's few threads."""
    silent = alive = 0.0
    while True:
        found, shown = look
        for event in shown:
            after = event["seq"]
            yield json.dumps(event) + "\n"
        if after >= found.events and (found.state.ended or not follow):
            return
        if shown:
            silent = alive = 0.0
        else:
            pause = min(_LAZY, _LOOK + silent / _TIMES)
            await request.app.state.scheduler.followers.pause(job, pause)
            silent, alive = silent + pause, alive + pause
        if alive >= _ALIVE:
            alive = 0.0
            yield "\n"
        try:
            look = await run_in_threadpool(_look, request, job, after, found)
        except CallerError:
            return  # the key was revoked meanwhile


def _look(request: Request, job: str, after: int, known: Job | None = None) -> Look:
    """The job and its next events, if the request's key is still good; the job as it is `known` where there are none."""
    principal = authorise(request, Scope.write)
    with request.app.state.db.read() as session:
        if known is not None and not service.moved(session, job, after):
            return known, ()
        found = service.get(session, principal.project, job)
        return found, service.events(session, principal.project, job, after)
