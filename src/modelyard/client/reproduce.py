"""Running again the job that made a version, and comparing what it makes now with what it made then.

`Yard.reproduce` calls it. The config is the recorded one with every default as it was, the inputs are versions, whose numbers
are never used again. The weights are compared by `training.compare`, which is loaded where their bytes differ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import Invalid
from modelyard.plugins import load

if TYPE_CHECKING:
    from modelyard.client.yard import Yard

_SUFFIX, _LONGEST = "-reproduced", 63


def reproduce(yard: Yard, reference: str, on_event: Callable[[Mapping[str, Any]], None] | None = None) -> dict[str, Any]:
    """{reference, reproduced, job, identical, largest, differences, environment}. Raises the job's error where it fails,
    `Invalid` where no job made the version."""
    version = yard.version(reference)
    if version["job"] is None:
        raise Invalid(f"{version['reference']} was made by no job of this project; there is nothing to run again.")
    job = yard.job(version["job"])
    again = resubmit(yard, version, job)
    yard.wait(again["id"], on_event)
    made = yard.version(same_output(job, yard.job(again["id"]), version))
    found: dict[str, Any] = {"identical": True, "tensors": None, "largest": 0.0, "differences": [], "environment": []}
    if made["artefact"] != version["artefact"]:
        found = _compared(yard, version["reference"], made["reference"])
    return {"reference": version["reference"], "reproduced": made["reference"], "job": again["id"], **found}


def resubmit(yard: Yard, version: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Queue the same job, whose outputs become versions of a name of their own."""
    name = version["name"].removesuffix(_SUFFIX)[: _LONGEST - len(_SUFFIX)] + _SUFFIX
    return yard.submit(
        job["kind"],
        job["config"],
        job["inputs"],
        target={"kind": "model", "name": name},
        ranks=job["ranks"],
        resources=job["resources"],
        timeout=job["timeout"],
        max_restarts=job["max_restarts"],
    )


def same_output(job: Mapping[str, Any], again: Mapping[str, Any], version: Mapping[str, Any]) -> str:
    """The version that the job made now in the place of the one it made then. A trial's became one through its sweep."""
    own = {output["reference"]: output["name"] for output in job["outputs"]}
    adopted = next((output["name"] for output in job["outputs"] if output.get("hash") == version["artefact"]), None)
    name = own.get(version["reference"], adopted)
    found = next((output["reference"] for output in again["outputs"] if output["name"] == name), None)
    if found is None:
        raise Invalid(f"Job {again['id']} made no output '{name}', which job {job['id']} had made.")
    return str(found)


def _compared(yard: Yard, first: str, second: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (
            yard.fetch(reference, Path(folder) / name) for name, reference in (("first", first), ("second", second))
        )
        found: dict[str, Any] = load("modelyard.training.compare:compare_folders")(ours, theirs)
    return found
