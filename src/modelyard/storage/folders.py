"""Plain folders, read and written with care: no link is ever followed, nothing special is ever opened.

Whoever filled a folder may still be running and may swap a file for a link while it is read (a rank in its sandbox, seen from
control outside). So every file is opened component by component from the folder's own descriptor, and looked at once open.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from modelyard.errors import Invalid

PIECE = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a pipe that nobody writes to must not wait for ever.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PLAIN = "copy the folder with 'cp -rL' and use the copy"

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Sequence[T], threads: int | None = None) -> list[R]:
    """`work` over `items` in threads (hashing and file reading release the GIL); results in order, the first error raised."""
    threads = threads or min(8, os.cpu_count() or 1)
    # By groups: what a pool keeps of each of its tasks is larger than a small file.
    size = max(1, min(64, len(items) // (4 * threads)))
    groups = [items[at : at + size] for at in range(0, len(items), size)]
    with ThreadPoolExecutor(threads) as pool:
        done = pool.map(lambda group: [work(item) for item in group], groups)
        return [result for results in done for result in results]


class OpenFolder:
    """A folder held open by descriptor. `files` is path → size as found at opening.

    Raises `Invalid` for anything but plain files and folders: links, hard links, pipes, sockets, devices. `within` is a
    trusted folder above; no component between it and `folder` may be a link. Without it only the last one may not.
    """

    def __init__(self, folder: Path, within: Path | None = None) -> None:
        self._fd = _open_folder(folder, within)
        try:
            self.files = self._walk()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> OpenFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def digest(self, path: str, start: int, length: int) -> str:
        """SHA-256 of a range, in hex, without holding it in memory. Raises `Invalid` if the file changed since."""
        digest = hashlib.sha256()
        for piece in self.pieces(path, start, length):
            digest.update(piece)
        return digest.hexdigest()

    def pieces(self, path: str, start: int, length: int) -> Iterator[memoryview]:
        """A range in pieces of at most 1 MiB, each good until the next. Raises `Invalid` if the file changed since."""
        fd = self._open(path)
        try:
            buffer = memoryview(bytearray(min(PIECE, length)))
            for offset in range(start, start + length, PIECE):
                piece = buffer[: min(PIECE, start + length - offset)]
                _fill(fd, piece, offset, path)
                yield piece
        finally:
            os.close(fd)

    def read(self, path: str, start: int, length: int) -> bytearray:
        """A range as bytes. Raises `Invalid` if the file changed since."""
        fd = self._open(path)
        try:
            data = bytearray(length)
            _fill(fd, memoryview(data), start, path)
            return data
        finally:
            os.close(fd)

    def _walk(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for root, folders, files, fd in os.fwalk(".", dir_fd=self._fd, onerror=_raise):
            for name in (*folders, *files):
                path = f"{root}/{name}".removeprefix("./")
                state = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if not stat.S_ISDIR(state.st_mode):
                    _check_plain(state, path)
                    found[path] = state.st_size
        return dict(sorted(found.items()))

    def _open(self, path: str) -> int:
        *parents, name = path.split("/")
        try:
            at = os.dup(self._fd)
            for parent in parents:
                at = _step(at, parent, _FOLDER)
            fd = _step(at, name, _FILE)
        except OSError as error:
            raise Invalid(f"The file {path!r} changed while it was read: {error.strerror}.") from error
        state = os.fstat(fd)
        try:
            _check_plain(state, path)
            if state.st_size != self.files[path]:
                raise Invalid(f"The file {path!r} changed while it was read: publish a folder nobody writes to.")
        except Invalid:
            os.close(fd)
            raise
        return fd


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def seal(folder: Path) -> None:
    """Make a tree that nobody else writes to read-only."""
    for root, _, files, fd in os.fwalk(folder, topdown=False):
        for name in files:
            os.chmod(name, 0o444, dir_fd=fd)
        Path(root).chmod(0o555)


def remove(folder: Path) -> None:
    """Remove a tree, a sealed one too, however deep it is; missing is fine. Links are removed, never followed. Raises `OSError`
    where something cannot go. Nobody may write to it any more.

    `shutil.rmtree` goes down as far as Python's stack and no further. Here folders within folders are first moved up to the
    top, one level at a time: nothing is ever more than two levels down.
    """
    if folder.is_symlink() or not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    free = (path for number in count() if not os.path.lexists(path := folder / f"removed-{number}"))
    while inner := _clear(folder):
        for one in inner:
            for deeper in _clear(one):
                deeper.chmod(0o700)  # a folder is moved only by who may write its link to its parent
                deeper.rename(next(free))
            one.rmdir()
    folder.rmdir()


def _clear(folder: Path) -> list[Path]:
    """Remove all that lies in a folder but its own folders, which are returned."""
    folder.chmod(0o700)
    with os.scandir(folder) as entries:
        inner = [(Path(entry.path), entry.is_dir(follow_symlinks=False)) for entry in entries]
    for path, is_folder in inner:
        if not is_folder:
            path.unlink()
    return [path for path, is_folder in inner if is_folder]


def _open_folder(folder: Path, within: Path | None) -> int:
    base = within if within is not None else folder.parent
    try:
        parts = folder.relative_to(base).parts
        at = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts:
            at = _step(at, part, _FOLDER)
    except (OSError, ValueError) as error:
        raise Invalid(f"'{folder.name}' is not a plain folder (missing, a file or a link); {_PLAIN}.") from error
    return at


def _step(at: int, name: str, flags: int) -> int:
    """Open `name` in the open folder `at`, which is closed."""
    try:
        if name == "..":
            raise NotADirectoryError(20, "'..' leaves the folder")
        return os.open(name, flags, dir_fd=at)
    finally:
        os.close(at)


def _check_plain(state: os.stat_result, path: str) -> None:
    if stat.S_ISLNK(state.st_mode):
        raise Invalid(f"{path!r} is a symbolic link; {_PLAIN}.")
    if not stat.S_ISREG(state.st_mode):
        raise Invalid(f"{path!r} is neither a file nor a folder (a pipe, socket or device); remove it.")
    if state.st_nlink > 1:
        raise Invalid(f"{path!r} is a hard link: it has another name elsewhere; {_PLAIN}.")


def _fill(fd: int, view: memoryview, offset: int, path: str) -> None:
    while view:
        count = os.preadv(fd, [view], offset)
        if count == 0:
            raise Invalid(f"The file {path!r} changed while it was read: publish a folder nobody writes to.")
        view, offset = view[count:], offset + count


def _raise(error: OSError) -> None:
    raise error
