"""Looking at work on the platform: `ps`, `logs`, `stop`; and what the commands that start it share."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelyard.cli.live import Live, progress_text
from modelyard.cli.screen import INTERRUPTED, AsJson, Data, Left, note, open_yard, say
from modelyard.cli.serving import numbered
from modelyard.cli.table import table
from modelyard.errors import TimedOut, Unavailable

if TYPE_CHECKING:
    from modelyard.client import Yard

# Seconds between looks at a job that waits or is being stopped.
_LOOK = 0.2
Job = Annotated[str, typer.Argument(help="A job's id, as `modelyard ps` shows it.", show_default=False)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay and show it; Ctrl-C detaches, the job goes on.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="One value of the configuration, as epochs=5 or module.loss=mse. May be repeated.", metavar="KEY=VALUE"
    ),
]


def finish(yard: Yard, job: dict[str, Any], live: Live) -> dict[str, Any]:
    """Show a job until its end and return the version it made. Ctrl-C detaches: the job goes on."""

    def see(event: Mapping[str, Any]) -> None:
        live.see(event)
        if event["type"] == "state" and event["state"] == "queued":
            _tell_why(yard, job["id"], live)

    try:
        with live:
            return yard.result(job["id"], see)
    except KeyboardInterrupt as error:
        raise detached(job["id"]) from error


def _tell_why(yard: Yard, job: str, live: Live) -> None:
    """While a job is queued, show why it waits; a platform out of sight is left to whoever follows the events."""
    try:
        while (shown := yard.job(job))["state"] == "queued":
            live.waits(shown["why"])
            time.sleep(_LOOK)
    except (Unavailable, TimedOut):
        return


def detached(job: str) -> Left:
    """What Ctrl-C means to whoever watched a job."""
    ways = f"`modelyard logs {job} --follow` shows it, `modelyard stop {job}` ends it."
    return Left("interrupted", f"Detached; the job goes on. {ways}", INTERRUPTED)


def started(as_json: bool, job: dict[str, Any]) -> None:
    """Say that a job was submitted, and how to see more of it."""
    say(as_json, {"job": job["id"]}, f"job {job['id']} {job['state']}; `modelyard logs {job['id']} --follow` shows it")


def ps(
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also the rest of the queue, and jobs that have ended.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show jobs and deployments: what runs, how far it is, why it waits."""
    with open_yard(data) as yard:
        underway, deployments = yard.underway(), yard.deployments()
        jobs = [*underway["jobs"], *(yard.jobs() if everything else ())]
    shown = list({job["id"]: job for job in jobs}.values())
    served = [(d["name"], d["model"], d["state"], d["engine"], len(d["replicas"]), d["error"]) for d in deployments]
    text = jobs_table(shown)
    text += unshown(shown, underway["counts"])
    text += "\n\n" + table(("deployment", "model", "state", "engine", "replicas", "note"), served, "Nothing is deployed.")
    say(as_json, {"jobs": shown, "counts": underway["counts"], "deployments": [numbered(d) for d in deployments]}, text)


def unshown(shown: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> str:
    """How much of the queue is not shown, where that is any."""
    rest = counts["queued"] - sum(job["state"] == "queued" for job in shown)
    return f"\n… and {rest:,} more in the queue; `modelyard ps --all` shows them" if rest > 0 else ""


def jobs_table(shown: Sequence[dict[str, Any]]) -> str:
    """Jobs as `ps` shows them: place in the queue and priority where any has one."""
    rows = [job_row(job) for job in shown]
    names = list(rows[0]) if rows else []
    known = [name for name in names if name not in ("place", "priority") or any(row[name] for row in rows)]
    spare = tuple(name for name in ("kind", "priority") if name in known)
    return table(known, [[row[name] for name in known] for row in rows], "No jobs on their way.", spare=spare)


def job_row(job: dict[str, Any]) -> dict[str, Any]:
    """A job as `ps` shows it: its target, how far it is, and why it waits, the first line of why it failed, or that it was
    started before."""
    told = job["error"]["message"].partition("\n")[0] if job["error"] else job["why"]
    if told is None and job["state"] in ("starting", "running") and job["attempt"] > 1:
        told = f"attempt {job['attempt']}"
    return {
        "job": job["id"],
        "kind": job["kind"],
        "target": job["outputs"][0]["reference"] if job["outputs"] else (job["target"] or {}).get("name"),
        "state": job["state"],
        "place": job["position"],
        "priority": job["priority"],
        "progress": progress_text(job["progress"]) if job["progress"] else None,
        "note": told,
    }


def logs(job: Job, follow: Follow = False, data: Data = None, as_json: AsJson = False) -> None:
    """Print what a job's ranks wrote, and which rank where there are several."""
    kept: list[str] = []
    with open_yard(data) as yard:
        several = yard.job(job)["ranks"] > 1
        try:
            for event in yard.follow(job) if follow else yard.events(job):
                if event["type"] != "log":
                    continue
                line = f"rank {event['rank']} │ {event['text']}" if several else str(event["text"])
                kept.append(line)
                if not as_json:
                    say(False, None, line)
        except KeyboardInterrupt as error:
            if not follow:
                raise
            raise detached(job) from error
        shown = yard.job(job) if as_json or not kept else {}
    if as_json:
        say(True, {"job": job, "state": shown["state"], "lines": kept}, "")
    elif not kept:
        note(silent(shown))


def silent(job: Mapping[str, Any]) -> str:
    """What there is to say of a job that wrote nothing."""
    told = job["error"]["message"] if job["error"] else job["why"]
    return f"Job {job['id']} has written nothing; it is {job['state']}{f': {told}' if told else '.'}"


def stop(
    job: Job,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return at once.")] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Cancel a job; what it published before is dropped."""
    with open_yard(data) as yard:
        shown = yard.cancel(job)
        while not no_wait and shown["state"] in ("queued", "starting", "running"):
            time.sleep(_LOOK)
            shown = yard.job(job)
    say(as_json, shown, f"job {job} {shown['state']}")
