"""Processes that outlive the ranks that started them: found, ended, told of.

The launcher calls it when its ranks are done. It adopts whatever they leave behind, however that left its parent, group or
session.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

from modelyard.jobs.processes import descendants, orphans

# Seconds in which the helpers of libraries, which watch their parent, may end by themselves; and in which the others must be
# dead.
_PATIENCE, _DYING = 1.0, 5.0
_PAUSE = 0.02
# Processes that are told of, and characters of each command line.
_SHOWN, _LONGEST = 5, 120


def end() -> list[str]:
    """End all that stems from this process, which has no children left that it wants; what had to be ended, one line each.

    What cannot be ended in time is left to the sandbox, which ends with this process, or to the supervisor.
    """
    _none_left(_PATIENCE)
    found: dict[int, str] = {}
    deadline = time.monotonic() + _DYING
    while orphans(set()) and time.monotonic() < deadline:
        for pid in descendants(os.getpid()):
            if pid not in found and (what := _described(pid)):
                found[pid] = what
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _none_left(_PAUSE)
    return list(found.values())


def shown(found: list[str]) -> str:
    """As part of a sentence."""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    ones = "a process" if len(found) == 1 else f"{len(found)} processes"
    return f"left {ones} running, which the platform ended: {'; '.join(found[:_SHOWN])}{more}"


def _none_left(patience: float) -> bool:
    deadline = time.monotonic() + patience
    while orphans(set()):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE / 4)
    return True


def _described(pid: int) -> str | None:
    """A process as it is told of: its number and command line, whatever that is made of; None where it is dead already."""
    try:
        program, *words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").partition("(")[2].rpartition(")")
    except OSError:
        return None
    if rest.split()[0] == "Z":
        return None
    words = [program.rpartition("/")[2] or f"[{name}]", *words]
    line = "".join(c if c.isprintable() else "?" for c in " ".join(words).strip())
    return f"{pid} ({line if len(line) <= _LONGEST else line[: _LONGEST - 1] + '…'})"
