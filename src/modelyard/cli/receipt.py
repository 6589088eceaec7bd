"""`receipt`: what a deployment's answers rest on, down to the data, and what all of it used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from modelyard.cli.screen import AsJson, Data, open_yard, say
from modelyard.cli.table import table


def receipt(
    name: Annotated[str, typer.Argument(help="A deployment's name.", show_default=False)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Show what a deployment's answers rest on: versions, jobs and hashes down to the data, and what was used."""
    with open_yard(data) as yard:
        body = yard.receipt(name)
    say(as_json, body, receipt_text(body))


def receipt_text(body: Mapping[str, Any]) -> str:
    """The tree of where answers come from, then what the jobs and the serving used."""
    kinds = {job["id"]: job["kind"] for job in body["jobs"]}
    used = [
        (row["kind"], row["subject"], kinds.get(row["subject"], ""), row["calls"], row["units"], round(row["cpu_seconds"], 3))
        for row in body["usage"]
    ]
    tree = tree_text(body["lineage"], kinds)
    return f"{tree}\n\n{table(('used by', 'subject', 'kind', 'calls', 'units', 'cpu seconds'), used, 'Nothing was used yet.')}"


def tree_text(tree: Mapping[str, Any], kinds: Mapping[str, str] | None = None) -> str:
    """A lineage tree, one version a line: reference, hash, and the job that made it."""
    rows = list(_rows(tree, "", ""))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label.ljust(width)}  {_made(node, kinds or {})}".rstrip() for label, node in rows)


def _rows(node: Mapping[str, Any], first: str, rest: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    name = node["reference"] if node["kind"] != "artefact" else node.get("role") or "files"
    yield f"{first}{name}", node
    parents: Sequence[Mapping[str, Any]] = node.get("parents", [])
    for number, parent in enumerate(parents, 1):
        last = number == len(parents)
        yield from _rows(parent, f"{rest}{'└─ ' if last else '├─ '}", f"{rest}{'   ' if last else '│  '}")


def _made(node: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    job = node.get("job")
    by = f"  {kinds.get(job, 'job')} {job}" if job else ""
    return f"{node['kind']:<8} sha256 {str(node['hash'])[:16]}{by}"
