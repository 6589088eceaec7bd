"""`reproduce`: run the job again that made a version, and compare the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from modelyard.cli.live import Live
from modelyard.cli.screen import AsJson, Data, open_yard, say
from modelyard.cli.table import table

_SHOWN = 20


def reproduce(
    reference: Annotated[str, typer.Argument(help="A model version, as digits-cnn@3.", show_default=False)],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Run the job again that made a version, with the same config and inputs, and compare the weights."""
    with open_yard(data) as yard, Live("reproduce") as live:
        found = yard.reproduce(reference, live.see)
    say(as_json, found, reproduced_text(found))


def reproduced_text(found: Mapping[str, Any]) -> str:
    """Bit-identical, or by how much each tensor differs, and what was not the same around it."""
    names = f"{found['reproduced']} (job {found['job']}) and {found['reference']}"
    if found["identical"]:
        return f"{names}: weights identical, bit for bit{_around(found['environment'])}"
    differences = found["differences"]
    rows = [(one["tensor"], one["why"] or f"{one['largest']:.3g}") for one in differences[:_SHOWN]]
    more = f"\n… and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
    head = f"{names}: {len(differences)} of {found['tensors']} tensors differ, by {found['largest']:.3g} at most"
    return f"{head}\n\n{table(('tensor', 'largest difference'), rows, '')}{more}{_around(found['environment'])}"


def _around(environment: list[Mapping[str, Any]]) -> str:
    if not environment:
        return ""
    rows = [(one["name"], one["first"], one["second"]) for one in environment]
    return f"\n\n{table(('environment', 'then', 'now'), rows, '')}"
