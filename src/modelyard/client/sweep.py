"""Sweeps as the client sees them: what is submitted, the table of trials, and the report's files.

`Yard.train` and the command line call it. What a space may be is for the platform to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import Invalid, NotFound
from modelyard.plugins import load

if TYPE_CHECKING:
    from modelyard.client.yard import Yard

CHOOSING = ("metric", "direction", "grace", "factor")  # options of `SweepConfig` that no training has


def asked(
    config: Mapping[str, Any], ranks: int, sweep: Mapping[str, Any] | str | None, trials: int, parallel: int | None
) -> tuple[str, dict[str, Any], int]:
    """Kind, config and ranks of the job that trains once, or searches where there is a `sweep`: its gangs then have `ranks`,
    and what of `config` says how to choose is the sweep's. Raises `Invalid` where there is such without a sweep."""
    own = {name: config[name] for name in CHOOSING if name in config}
    if sweep is None:
        if own:
            raise Invalid(f"'{next(iter(own))}' says how a sweep chooses between trials; give `sweep` what to search.")
        return "train", dict(config), ranks
    whole = {name: value for name, value in config.items() if name not in own}
    space = sweep if isinstance(sweep, str) else dict(sweep)
    return "sweep", {"train": whole, "space": space, "trials": trials, "parallel": parallel, "ranks": ranks, **own}, 1


def table(job: Mapping[str, Any], kind: str = "sweep") -> list[dict[str, Any]]:
    """The trials of a sweep in order: {number, parameters, job, state, epoch, score, seconds, error}; or of a `search`, whose
    rows have `steps` and what was measured. Raises `Invalid`."""
    if job["kind"] != kind:
        raise Invalid(f"Job {job['id']} is no {kind} but of kind '{job['kind']}'.")
    facts = job["facts"].get("0", {})
    return [dict(facts[name]) for name in sorted(facts) if name.startswith("trial ")]


def save_report(yard: Yard, job: Mapping[str, Any], folder: str | Path) -> Path:
    """The files of its report as a new folder: sweep.json, sweep.svg and sweep.png, of a search search.json, pareto.svg and
    pareto.png. Raises `NotFound` while it has not ended well."""
    found = next((output for output in job["outputs"] if output["name"] == "report"), None)
    if found is None:
        raise NotFound(f"The {job['kind']} {job['id']} is {job['state']} and has no report; it writes one when it succeeds.")
    return Path(load("modelyard.client.transfer:fetch")(yard._wire, found["hash"], folder, None))
