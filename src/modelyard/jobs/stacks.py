"""What the stacks of a gang that hangs say: which rank hung, where, and who only waited for it. Pure.

`faulthandler` wrote them, at the launcher's signal, into what each rank prints. A rank whose last call is one that waits for
its peers is not the cause, unless all do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

_FRAME = re.compile(r'  File "(?P<file>.+)", line (?P<line>\d+) in (?P<name>.+)')
# The folder of an artefact, in which a user's code may lie.
_HASH = re.compile(r"^([0-9a-f]{12})[0-9a-f]{52}$")
_CURRENT = "Current thread"
# Where a rank waits for others: in a collective, or in a backward pass whose gradients are exchanged.
_WAITING = ("/torch/distributed/", "/torch/autograd/graph.py")
_LIBRARIES = ("/site-packages/", "/lib/python3")
# Lines of one rank that are looked at, and ranks that are named.
MOST_LINES, _NAMED = 2000, 8


class Frame(NamedTuple):
    file: str
    line: int
    name: str

    @property
    def shown(self) -> str:
        folder, _, name = self.file.rpartition("/")
        folder = _HASH.sub(r"\1…", folder.rpartition("/")[2])
        return f"{self.name} ({folder}/{name}:{self.line})"


def frames(lines: Sequence[str]) -> list[Frame]:
    """The calls of the thread that took the signal, the last one first; none where the process did not answer."""
    start = next((at + 1 for at, line in enumerate(lines) if line.startswith(_CURRENT)), len(lines))
    found = []
    for line in lines[start:]:
        if (match := _FRAME.fullmatch(line)) is None:
            break
        found.append(Frame(match["file"], int(match["line"]), match["name"]))
    return found


def told(printed: Mapping[int, Sequence[str]], silent: Collection[int]) -> str:
    """One sentence: which rank hung and where, and where those were that waited for it. `printed`: what each wrote since the
    signal; `silent`: those that had said nothing. Where these only waited it is one of the others that they waited for."""
    calls = {rank: frames(lines) for rank, lines in printed.items()}
    waiting = [rank for rank, found in calls.items() if found and any(part in found[0].file for part in _WAITING)]
    busy = [rank for rank in calls if rank not in waiting]
    hung = [rank for rank in busy if rank in silent] or busy
    if not hung:
        return f"All ranks waited for each other: {_listed(waiting, calls)}."
    waited = f"; {_listed(waiting, calls)} waited for it" if waiting else ""
    return f"Hung: {_listed(hung, calls)}{waited}."


def _listed(ranks: Sequence[int], calls: Mapping[int, Sequence[Frame]]) -> str:
    named = ", ".join(f"rank {rank} {_where(calls[rank])}" for rank in ranks[:_NAMED])
    return named + (f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else "")


def _where(calls: Sequence[Frame]) -> str:
    """The last call, and the last one of code that is no library's where that is another."""
    if not calls:
        return "did not answer, as a process that is stopped or waits for the kernel does not"
    own = next((frame for frame in calls if not any(part in frame.file for part in _LIBRARIES)), calls[0])
    return f"in {calls[0].shown}" + (f", called by {own.shown}" if own is not calls[0] else "")
