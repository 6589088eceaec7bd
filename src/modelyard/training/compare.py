"""Two trained models side by side: whether their weights are the same bit for bit, and what differed when they were trained.

`client.reproduce` loads it late, given two folders; nothing here knows where they come from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.torch import read_weights
from modelyard.errors import Invalid

RECORD = "training.json"
# What a training record says of where it was trained; its metrics follow from the weights.
_ENVIRONMENT = ("versions", "ranks", "mesh", "config", "dataset")


class Difference(NamedTuple):
    """A tensor that is not the same in both. `largest`: None where the two cannot be subtracted; `why` says so."""

    tensor: str
    largest: float | None
    why: str | None = None


def compare(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> list[Difference]:
    """The tensors that are not equal bit for bit, with the largest difference of their values."""
    found = []
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs:
            found.append(Difference(name, None, f"only in the {'first' if name in ours else 'second'}"))
        elif (one := _kind(ours[name])) != (other := _kind(theirs[name])):
            found.append(Difference(name, None, f"{one} and {other}"))
        elif not _same(ours[name], theirs[name]):
            found.append(Difference(name, _largest(ours[name], theirs[name])))
    return found


def compare_folders(first: Path, second: Path) -> dict[str, Any]:
    """{identical, tensors, largest, differences: [{tensor, largest, why}], environment: [{name, first, second}]} of two model
    artefacts. Raises `Invalid` where one has no weights for torch."""
    ours, theirs = _weights(first), _weights(second)
    differences = compare(ours, theirs)
    known = [difference.largest for difference in differences if difference.largest is not None]
    return {
        "identical": not differences,
        "tensors": len(ours),
        "largest": max(known, default=0.0),
        "differences": [difference._asdict() for difference in differences],
        "environment": differing(_record(first), _record(second)),
    }


def differing(first: Mapping[str, Any], second: Mapping[str, Any], above: str = "") -> list[dict[str, Any]]:
    """Values of two nested records that are not equal, by dotted name."""
    found = []
    for name in dict.fromkeys([*first, *second]):
        one, other = first.get(name), second.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            found += differing(one, other, f"{above}{name}.")
        elif one != other:
            found.append({"name": f"{above}{name}", "first": one, "second": other})
    return found


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit: a NaN equals itself, and 0 is not -0."""
    ours, theirs = (tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(ours, theirs)


def _largest(one: torch.Tensor, other: torch.Tensor) -> float:
    apart = (one.double() - other.double()).abs()
    return float(apart.max())


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    card = ModelCard.load(folder)
    if "weights" not in card.files:
        raise Invalid(f"The model has no weights for torch to compare; its files are {', '.join(card.files)}.")
    return read_weights(inside(folder, card.files["weights"]))


def _record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    record = json.loads(path.read_bytes()) if path.is_file() else {}
    return {name: record[name] for name in _ENVIRONMENT if name in record}
