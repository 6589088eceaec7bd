"""How much disk a folder takes that users' code may write to: the launcher looks at a job's, the supervisor at a replica's,
again and again, for nothing in the kernel bounds a folder.

What lies there is users' code's doing: links are not followed, closed folders are opened, and looking ends once it is too much.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 512
_CLOSED = {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP}  # what users' code does to a folder


def excess(folder: Path, most_bytes: int, most_files: int, *, opens: bool = True) -> str | None:
    """What is too much about a folder, None where nothing is: disk it takes (holes take none), files and folders in it.
    `opens`: a closed folder is opened, else it is too much. Who looks from outside of the sandbox changes nothing there, and
    whatever else goes wrong, as where no more files may be open, is not the folder's fault: nothing is too much then."""
    taken = files = 0
    waiting = [str(folder)]
    while waiting:
        try:
            for entry in _entries(waiting.pop(), opens):
                files += 1
                taken += _taken(entry)
                if taken > most_bytes:
                    return f"more than {most_bytes:,} bytes on disk"
                if files > most_files:
                    return f"more than {most_files:,} files"
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except OSError as error:
            if not opens and error.errno not in _CLOSED:
                return None
            return f"a folder that cannot be looked into ({error.strerror})"
    return None


def _entries(path: str, opens: bool) -> Iterator[os.DirEntry[str]]:
    """What is in a folder; nothing where it is gone."""
    try:
        listing = os.scandir(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    except PermissionError:
        if not opens:
            raise
        os.chmod(path, 0o700)  # noqa: PTH101 — a plain string: there may be many
        listing = os.scandir(path)
    with listing:
        yield from listing


def _taken(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat(follow_symlinks=False).st_blocks * _BLOCK
    except FileNotFoundError:
        return 0
