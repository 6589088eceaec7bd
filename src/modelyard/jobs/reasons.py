"""The words for why a job waits: "waits for 4 CPUs, 2 of 8 are free; 3rd; project a has used 71 % of its share".

`assign` and the checks at submission call it.
"""

from __future__ import annotations

from collections.abc import Sequence

from modelyard.jobs.types import Amount, Node

_GB = 1e9


def amounts(ranks: int, each: Amount) -> str:
    """All ranks together: '8 CPUs, 2 GPUs and 16 GB of memory'."""
    together = Amount(*(ranks * amount for amount in each))
    return _listed([_said(name, amount) for name, amount in zip(Amount._fields, together, strict=True) if amount])


def lack(ranks: int, each: Amount, free: Amount, there: Amount) -> str:
    """What is short: '4 CPUs, 2 of 8 are free'; all that is asked for where nothing is, taken by itself."""
    parts = []
    for name, amount, left, whole in zip(Amount._fields, each, free, there, strict=True):
        if ranks * amount > left:
            parts.append(f"{_said(name, ranks * amount)}, {_of(name, left, whole)} free")
    return " and ".join(parts)


def too_large(ranks: int, each: Amount, nodes: Sequence[Node]) -> str:
    """Why a gang can never run: 'needs 3 CPUs at once; there are 2'."""
    there = Amount(*(sum(node.room[resource] for node in nodes) for resource in range(len(Amount._fields))))
    for name, amount, whole in zip(Amount._fields, each, there, strict=True):
        if ranks * amount > whole:
            return f"needs {_said(name, ranks * amount)} at once; there {_are(name, whole)} {_number(name, whole)}"
    largest = max((node.room for node in nodes), default=Amount(0))
    return f"needs {ranks} × {amounts(1, each)} at once; the largest of {len(nodes)} nodes has {amounts(1, largest)}"


def ordinal(number: int) -> str:
    """'1st', '2nd', '11th'."""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _said(name: str, amount: int) -> str:
    if name == "memory":
        return f"{_number(name, amount)} of memory"
    return f"{amount} {name[:-1].upper()}{'s' * (amount != 1)}"


def _number(name: str, amount: int) -> str:
    return f"{max(0, amount) / _GB:.3g} GB" if name == "memory" else str(max(0, amount))


def _of(name: str, left: int, whole: int) -> str:
    return f"{_number(name, left)} of {_number(name, whole)} {_are(name, left)}"


def _are(name: str, amount: int) -> str:
    return "is" if name == "memory" or amount == 1 else "are"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
