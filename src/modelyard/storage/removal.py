"""Removing a folder that hostile code has filled: of any depth, with no link followed. The scheduler calls it.

`shutil.rmtree` goes down as deep as Python's stack and no further, so that a job could leave a folder that stays for ever.
Here folders within folders are first moved up to the top, one level at a time: nothing is ever more than two levels down.
"""

from __future__ import annotations

import contextlib
import os
from itertools import count
from pathlib import Path


def remove(folder: Path) -> None:
    """Remove `folder` and all it holds; one that is not there is no error, nor what cannot be removed: that stays. Nobody may
    write to it any more."""
    names, kept = count(), set[str]()
    while inner := [entry for entry in _entries(folder) if entry.is_dir(follow_symlinks=False) and entry.name not in kept]:
        for entry in inner:
            if not _empty(Path(entry.path), folder, names):
                kept.add(entry.name)
    with contextlib.suppress(OSError):
        for entry in _entries(folder):
            if not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink()
        folder.rmdir()


def _empty(inner: Path, top: Path, names: count[int]) -> bool:
    """Remove `inner`, which lies in `top`, after moving its own folders to `top` under names that are free."""
    try:
        inner.chmod(0o700)
        for entry in _entries(inner):
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).chmod(0o700)  # a folder is moved only by who may write its link to its parent
                Path(entry.path).rename(_free(top, names))
            else:
                Path(entry.path).unlink()
        inner.rmdir()
    except OSError:
        return False
    return True


def _free(top: Path, names: count[int]) -> Path:
    return next(path for number in names if not os.path.lexists(path := top / f"removed-{number}"))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
