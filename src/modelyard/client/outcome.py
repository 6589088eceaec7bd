"""Reading what came of work: a job's end and its outputs, which version a bare name stands for, and what it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelyard.errors import Crashed, Invalid, ModelyardError, from_wire

ENDED = frozenset({"succeeded", "failed", "cancelled"})


def chosen(outputs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The output a job was run for: the one it gave an alias, else its last."""
    return next((output for output in outputs if output.get("alias")), outputs[-1])


def failure_of(job: Mapping[str, Any]) -> ModelyardError:
    """A failed or cancelled job's own error, naming the job."""
    error = job["error"]
    if error is None:
        return Crashed(f"Job {job['id']} {job['state']}.")
    return from_wire(str(error["code"]), f"Job {job['id']} {job['state']}: {error['message']}")


def origins(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Every version in the tree, nearest first, each once."""
    level, seen = [tree], set()
    while level:
        below: list[Mapping[str, Any]] = []
        for node in level:
            known = (node["kind"], node["reference"])  # a model may have the name of its dataset
            if known not in seen:
                seen.add(known)
                yield node
            below += node.get("parents", [])
        level = below


def dataset_of(tree: Mapping[str, Any], option: str = "dataset=…, --dataset") -> str:
    """The dataset nearest to a model in its lineage. Raises `Invalid`, naming the `option` that says another, where there is
    none, or none any more."""
    say_which = f"Say which to measure on ({option})."
    for node in origins(tree):
        if node["kind"] == "dataset":
            if node.get("deleted"):
                raise Invalid(f"{tree['reference']} was trained on {node['reference']}, which was deleted. {say_which}")
            return str(node["reference"])
    raise Invalid(f"No dataset is known for {tree['reference']}: it was imported. {say_which}")


def newest_original(name: Mapping[str, Any]) -> str:
    """Of a model's versions the newest that no optimise job made (such a variant says so in its metadata); else the newest."""
    versions = name["versions"]
    return str(([v for v in versions if "variant" not in v["metadata"]] or versions)[-1]["reference"])


def best_or_newest(name: Mapping[str, Any]) -> str:
    """'name@best' where a version has that alias, else the newest version."""
    newest = name["versions"][-1]
    return f"{newest['name']}@best" if any("best" in v["aliases"] for v in name["versions"]) else str(newest["reference"])


def concerns(row: Mapping[str, Any], deployment: str, model: str, jobs: Sequence[str]) -> bool:
    """Whether a row of usage is of one of these jobs, or of serving this version under this deployment."""
    if row["kind"] == "job":
        return row["subject"] in jobs
    return bool(row["subject"] == deployment and row["version"] == model)
