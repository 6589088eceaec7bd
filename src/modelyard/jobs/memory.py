"""How much memory the processes of a gang hold together. The launcher looks, again and again: the kernel bounds each alone.

What is mapped from files does not count, for it can be let go of. Shared pages count once, and so does what lies in memory
without being any process's: files in private in-memory folders, memfds, System V segments.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

# What the kernel takes for a file or folder in memory, beside its contents: the entry and the inode.
_INODE = 1024
_IN_MEMORY = ("/tmp", "/dev/shm")  # noqa: S108 — the sandbox's own


def private_folders() -> Sequence[str]:
    """The in-memory folders that are this gang's alone: none outside of the sandbox, whose first process is the launcher."""
    return _IN_MEMORY if os.getpid() == 1 else ()


def clear(folders: Sequence[str]) -> bool:
    """Remove what is in them, but for what is mounted there; whether nothing else is left."""
    whole, inner, kept, waiting = True, list[str](), set[str](), list(folders)
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:
            whole, entries = False, []
        for entry in entries:
            if os.path.ismount(entry.path):
                kept.update(str(parent) for parent in Path(entry.path).parents)
            elif entry.is_dir(follow_symlinks=False):
                inner.append(entry.path)
                waiting.append(entry.path)
            else:
                whole = _gone(os.unlink, entry.path) and whole
    for folder in reversed(inner):
        whole = (folder in kept or _gone(os.rmdir, folder)) and whole
    return whole


def _gone(remove: Callable[[str], None], path: str) -> bool:
    try:
        remove(path)
    except OSError:
        return False
    return True


def held(pids: Collection[int], folders: Sequence[str], enough: int) -> int:
    """Bytes that the processes hold together. Where a bound that is cheaply found is no more than `enough`, that bound."""
    files = sum(map(_in_folder, folders)) + (_segments() if folders else 0) + _memfds(pids)
    bound = files + sum(sum(_fields(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:"))) for pid in pids)
    if bound <= enough:
        return bound
    parts = [_proportional(pid) for pid in pids]
    # Files that are mapped are in both: the larger is the least that it can be.
    return sum(private for private, _ in parts) + max(files, sum(shared for _, shared in parts))


def _proportional(pid: int) -> tuple[int, int]:
    """Private and shared bytes of a process, its part of what it shares; in full where it cannot be looked into."""
    found = _fields(f"/proc/{pid}/smaps_rollup", ("Pss_Anon:", "Pss_Shmem:"))
    return found if any(found) else _fields(f"/proc/{pid}/status", ("RssAnon:", "RssShmem:"))


def _fields(path: str, names: tuple[str, str]) -> tuple[int, int]:
    """Two sizes from a file of the kernel's, in bytes; nothing where the process is gone."""
    found = {}
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 — twice a second
        for line in file:
            name, _, value = line.partition("\t") if "\t" in line else line.partition(" ")
            if name in names:
                found[name] = int(value.split()[0]) << 10
    return found.get(names[0], 0), found.get(names[1], 0)


def _in_folder(folder: str) -> int:
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize + (facts.f_files - facts.f_ffree) * _INODE


def _memfds(pids: Collection[int]) -> int:
    """Bytes in files without a name, each counted once."""
    found: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path).startswith("/memfd:"):  # noqa: PTH115 — many, and often
                        facts = entry.stat()
                        found[facts.st_ino] = facts.st_blocks * 512
    return sum(found.values())


def _segments() -> int:
    """Bytes in System V shared memory, which stays when nobody has it attached."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        header, *rows = (line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines())
        return sum(int(row[header.index("rss")]) for row in rows)
    return 0
