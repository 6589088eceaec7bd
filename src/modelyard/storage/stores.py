"""The object store: keys to bytes. obstore does the reading everywhere; for a folder the writing is ours, because obstore's
never reaches the disk (no fsync), and a store that forgets what it acknowledged in a power cut has not stored it.

`open_store` picks one by URL. The contract is `tests/contracts/test_stores.py`; `testing.MemoryStore` is the published double.
Never fork a process that has used a store: obstore's threads do not live in the child, and its next call waits for ever.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from modelyard.errors import Invalid, NotFound, Unavailable
from modelyard.storage.direct import DirectFile
from modelyard.storage.folders import sync_folder

Buffer = bytes | bytearray | memoryview
T = TypeVar("T")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Staged:
    """Bytes on their way into a store, in `file`, hashed as they come: their key may follow from their hash. `path` is where
    they lie, where that has a name."""

    def __init__(self, file: BinaryIO, path: Path = Path()) -> None:
        self.file = file
        self.path = path
        self.size = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._hash.hexdigest()

    def write(self, data: Buffer) -> None:
        with _translated("staged"):
            self.file.write(data)
        self._hash.update(data)
        self.size += len(data)


class ObjectStore(Protocol):
    """Keys are relative POSIX paths. Every verb is atomic; a key that was put is there, whole, for every later reader.
    Raises `NotFound` for a missing key and `Unavailable` when the store itself fails; messages never name its place."""

    def put(self, key: str, data: Buffer, *, create: bool = False) -> bool:
        """Write an object. With `create`, only if there is none: False says that there was one, and nothing was written."""
        ...

    def stage(self, *, cold: bool = False) -> AbstractContextManager[Staged]:
        """A place for an object of any size before its key is known; gone when the block is left, unless it was adopted.
        `cold`: nobody will read it soon."""
        ...

    def adopt(self, staged: Staged, key: str) -> None:
        """Make what this store staged the object of a key, replacing what is there. Nothing is written to `staged` after."""
        ...

    def get(self, key: str) -> bytes: ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`. Raises `Invalid` unless they all lie in the object."""
        ...

    def size(self, key: str) -> int | None:
        """Bytes of the object, None where there is none."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys below `prefix` (whole path segments), in no order."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; a missing one is fine."""
        ...

    def sweep(self, before: float) -> int:
        """Remove what killed writers left that nobody has touched since `before` (seconds since the epoch), and say how much.
        No object is among it. Whoever is still writing must have written since."""
        ...


def check_key(key: str) -> None:
    """Raises `Invalid` unless `key` is a plain relative path; '#' is kept for what is being written."""
    if any(part in ("", ".", "..") for part in key.split("/")) or "\0" in key or "#" in key:
        raise Invalid(f"The key {key!r} is not a plain relative path.")


class BucketStore:
    """Any store that obstore can open."""

    def __init__(self, bucket: Any) -> None:
        self._bucket = bucket

    def put(self, key: str, data: Buffer, *, create: bool = False) -> bool:
        check_key(key)
        with _translated(key):
            try:
                obstore.put(self._bucket, key, data, mode="create" if create else "overwrite", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    @contextmanager
    def stage(self, *, cold: bool = False) -> Iterator[Staged]:
        with tempfile.TemporaryFile() as file:
            yield Staged(file)

    def adopt(self, staged: Staged, key: str) -> None:
        check_key(key)
        staged.file.seek(0)
        with _translated(key):
            obstore.put(self._bucket, key, staged.file)

    def get(self, key: str) -> bytes:
        with _translated(key):
            return bytes(obstore.get(self._bucket, key).bytes())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        size = self.size(key)
        if size is None:
            raise _missing(key)
        if start < 0 or length < 0 or start + length > size:
            raise Invalid(f"The range {start}+{length} is not inside an object of {size} bytes.")
        if length == 0:
            return b""
        with _translated(key):
            return bytes(obstore.get_range(self._bucket, key, start=start, length=length))

    def size(self, key: str) -> int | None:
        try:
            with _translated(key):
                return int(obstore.head(self._bucket, key)["size"])
        except NotFound:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        with _translated(prefix):
            for batch in obstore.list(self._bucket, prefix=prefix):
                yield from (str(item["path"]) for item in batch)

    def delete(self, key: str) -> None:
        # Asked first: obstore takes a missing key for an error, and in a folder a prefix for an object.
        if self.size(key) is not None:
            with suppress(NotFound), _translated(key):
                obstore.delete(self._bucket, key)

    def sweep(self, before: float) -> int:
        """Nothing: what is not whole has no name here, and goes by the rules of the bucket."""
        return 0


class FolderStore(BucketStore):
    """A folder on this machine. An object gets its name only when its bytes are on disk, and the name is on disk when `put`
    returns. What a killed writer leaves is named 'staged#digits', which obstore does not list and nothing reads."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        super().__init__(LocalStore(prefix=root))
        self._root = root
        self._durable = {root}

    def put(self, key: str, data: Buffer, *, create: bool = False) -> bool:
        check_key(key)
        path, staged = self._root / key, self._staged()
        with _translated(key):
            try:
                _write(os.open(staged, _NEW, 0o600), data)
                created = self._in_folder(path.parent, lambda: _name(staged, path, create))
            finally:
                staged.unlink(missing_ok=True)
            sync_folder(path.parent)
        return created

    @contextmanager
    def stage(self, *, cold: bool = False) -> Iterator[Staged]:
        path = self._staged()
        try:
            with _translated("staged"):
                file = cast(BinaryIO, DirectFile(path)) if cold else os.fdopen(os.open(path, _NEW, 0o600), "wb")
            try:
                yield Staged(file, path)
            finally:
                with suppress(OSError):  # what a full disk did not take is tried once more
                    file.close()
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, staged: Staged, key: str) -> None:
        check_key(key)
        path = self._root / key
        with _translated(key):
            staged.file.flush()
            os.fsync(staged.file.fileno())
            self._in_folder(path.parent, lambda: staged.path.replace(path))
            sync_folder(path.parent)

    def size(self, key: str) -> int | None:
        check_key(key)
        with _translated(key), suppress(FileNotFoundError, NotADirectoryError):
            found = (self._root / key).stat()
            return found.st_size if stat.S_ISREG(found.st_mode) else None
        return None

    def sweep(self, before: float) -> int:
        """Files without a name of their own, and empty folders."""
        swept = 0
        for folder, _, names in os.walk(self._root, topdown=False):
            left = [Path(folder, name) for name in names if "#" in name]
            for path in [*left, Path(folder)]:
                with suppress(OSError):  # gone meanwhile, or a folder that is not empty
                    if path == self._root or path.stat().st_mtime >= before:
                        continue
                    path.unlink() if path in left else path.rmdir()
                    swept += 1
        return swept

    def _staged(self) -> Path:
        """A new file at the top, not beside the object's: who drops all below a prefix leaves nothing of a killed writer's."""
        return self._root / f"staged#{secrets.randbits(63)}"

    def _in_folder(self, folder: Path, step: Callable[[], T]) -> T:
        """`step` with `folder` there; once more where `sweep` took it, empty, in between."""
        with suppress(FileNotFoundError):
            self._make_folder(folder)
            return step()
        self._make_folder(folder)
        return step()

    def _make_folder(self, folder: Path) -> None:
        """Make a folder and those above it, durably."""
        if folder in self._durable and folder.is_dir():
            return
        self._make_folder(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
        sync_folder(folder.parent)
        self._durable.add(folder)


def open_store(url: str) -> ObjectStore:
    """The store at a URL: `file:///folder`. Raises `Invalid` for any other scheme."""
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise Invalid(f"No object store of kind '{parts.scheme}' can be opened; give a folder as 'file:///absolute/path'.")
    return FolderStore(Path(path))


def _write(fd: int, data: Buffer) -> None:
    """Fill a new file, which is on disk when this returns, and close it."""
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def _name(staged: Path, path: Path, create: bool) -> bool:
    """Give a staged file its name, at once and whole. False: `create` was asked and the name was taken."""
    if not create:
        staged.replace(path)
        return True
    try:
        path.hardlink_to(staged)
    except FileExistsError:
        return False
    return True


def _missing(key: str) -> NotFound:
    return NotFound(f"There is no object '{key}' in the store.")


@contextmanager
def _translated(key: str) -> Iterator[None]:
    """The store's own errors as ours. Theirs name folders and hosts, so their text goes no further."""
    try:
        yield
    except FileNotFoundError:
        raise _missing(key) from None
    except ValueError as error:
        raise Invalid(f"The key {key!r} is not a plain relative path.") from error
    except (OSError, BaseError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else type(error).__name__
        raise Unavailable(f"The object store failed: {reason}.") from error
