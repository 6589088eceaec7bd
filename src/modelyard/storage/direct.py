"""A new file that is written past the page cache, for what nobody reads soon, such as checkpoints.

Memory for a file's pages is taken from the machine afresh each time, which can cost more than all else of the writing, and the
pages push out others that are wanted. Where the file system cannot do it (`O_DIRECT`), it is written the ordinary way.
"""

from __future__ import annotations

import errno
import fcntl
import io
import mmap
import os
from pathlib import Path
from typing import Any

_BLOCK = 1 << 20  # bytes of a write: a multiple of every disk's sector
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT = (errno.EINVAL, errno.EOPNOTSUPP)


class DirectFile(io.RawIOBase):
    """`path` must not exist. All that was written is on its way to the disk after `flush`, which ends the way past the cache:
    what is written after it takes the ordinary one."""

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self._fd = -1
        try:
            self._fd = os.open(path, _NEW | os.O_DIRECT, mode)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            path.unlink(missing_ok=True)  # some file systems say so only after they made it
            self._fd = os.open(path, _NEW, mode)
        self._block = mmap.mmap(-1, _BLOCK)  # page by page, as such writes want it
        self._filled = 0

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        while view:
            part = view[: _BLOCK - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            view = view[len(part) :]
            if self._filled == _BLOCK:
                self._leave()
        return size

    def flush(self) -> None:
        if self._filled:  # less than a block, which only the ordinary way takes
            self._ordinary()
            self._leave()

    def close(self) -> None:
        if self._fd < 0:
            return
        try:
            self.flush()
        finally:
            fd, self._fd = self._fd, -1
            os.close(fd)
            super().close()

    def _leave(self) -> None:
        view = memoryview(self._block)[: self._filled]
        self._filled = 0
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                if error.errno not in _CANNOT or not self._ordinary():
                    raise

    def _ordinary(self) -> bool:
        """Write the ordinary way from now on; False where that is so already."""
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)
