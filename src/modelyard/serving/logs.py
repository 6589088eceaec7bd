"""Logs of replicas, one file each, kept for a while after their end and no larger than is of use. The controller calls it.

What is there is in the folder alone, so that whoever controls next goes on with it. The supervisor opens a log, for appending.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

# Logs of ended replicas that are kept: of each deployment, and of all. The newest stay.
KEPT_EACH, KEPT = 3, 200
# Bytes at which a log is cut, and that are left of it: its end.
LONGEST, LEFT = 64 << 20, 1 << 20
_CUT = b"(what stood here was cut: the log had grown too long)\n"
# Seconds between two looks.
_LOOK = 5.0
_NAME = re.compile(r"(?P<deployment>.+)-(?P<token>r-[0-9a-f]+)\.log")


@dataclass(frozen=True, slots=True)
class Log:
    """A log as it lies there; `written` is when it was last."""

    path: Path
    deployment: str
    token: str
    size: int
    written: float


def surplus(logs: Sequence[Log], running: Collection[str]) -> list[Log]:
    """Logs to remove: of ended replicas, beyond the newest of their deployment and the newest of all."""
    ended = sorted((log for log in logs if log.token not in running), key=lambda log: log.written, reverse=True)
    counts: dict[str, int] = {}
    removed, kept = list[Log](), 0
    for log in ended:
        counts[log.deployment] = counts.get(log.deployment, 0) + 1
        if counts[log.deployment] > KEPT_EACH or kept >= KEPT:
            removed.append(log)
        else:
            kept += 1
    return removed


class Logs:
    """The logs in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._look = 0.0

    def path(self, project: str, deployment: str, token: str) -> Path:
        return self._folder / f"{project}.{deployment}-{token}.log"

    def tidy(self, running: Collection[str]) -> None:
        """Remove and cut what is too much, every few seconds. `running` are the tokens of replicas that have not ended."""
        if time.monotonic() < self._look:
            return
        self._look = time.monotonic() + _LOOK
        logs = _listed(self._folder)
        for log in logs:
            if log.size > LONGEST:
                _cut(log.path)
        for log in surplus(logs, running):
            log.path.unlink(missing_ok=True)


def _listed(folder: Path) -> list[Log]:
    found = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is not None and entry.is_file(follow_symlinks=False):
                facts = entry.stat(follow_symlinks=False)
                found.append(Log(Path(entry.path), name["deployment"], name["token"], facts.st_size, facts.st_mtime))
    return found


def _cut(path: Path) -> None:
    """Leave the end of a log that is written on meanwhile: what is appended between the two steps comes first."""
    with path.open("rb+") as file:
        file.seek(-LEFT, os.SEEK_END)
        end = file.read(LEFT)
        file.truncate(0)
    with path.open("ab") as file:
        file.write(_CUT + end.partition(b"\n")[2])
