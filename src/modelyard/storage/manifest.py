"""What an artefact is made of: paths, sizes and hashes, in one canonical form whose SHA-256 is the artefact's hash.

A file is cut into chunks of 64 MiB; its root is the Merkle tree over their SHA-256, so that hashing is parallel, uploads
resume chunk by chunk and ranges verify. A `Manifest` that exists is valid: every way to make one goes through its checks.

A manifest may come from anybody and has up to 100,000 files, so it is read straight into its types: what does not fit them is
refused where it stands, before it takes memory.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated

import msgspec

from modelyard.errors import Invalid
from modelyard.storage import folders

CHUNK = 64 << 20
MAX_FILES = 100_000
_HEX = re.compile(r"[0-9a-f]{64}")
_CANONICAL = msgspec.json.Encoder(order="sorted")

Hash = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]


def check_hash(text: str) -> None:
    """Raises `Invalid` unless `text` is a SHA-256 in lower-case hex."""
    if not _HEX.fullmatch(text):
        raise Invalid("A hash is 64 lower-case hexadecimal digits (SHA-256).")


def check_path(path: str) -> None:
    """Raises `Invalid` unless `path` is a relative POSIX path that stays in its folder and that every file system can hold."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise Invalid(f"The path {path!r} is not UTF-8; rename the file.") from None
    parts = path.split("/")
    if len(raw) > 1024 or (len(raw) > 255 and any(len(part.encode()) > 255 for part in parts)):
        raise Invalid(f"The path '{path[:60]}…' is too long: at most 1024 bytes, 255 between slashes.")
    plain = path.isascii() and path.isprintable()
    if not plain and any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in path):
        raise Invalid(f"The path {path!r} has control characters; rename the file.")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise Invalid(f"The path {path!r} is not plain: use relative paths with '/', without '.', '..' or empty parts.")


def merkle_root(chunks: Sequence[str]) -> str:
    """The root over the chunks' hashes (hex): one is itself; else SHA-256(0x01 + left + right), an odd node is promoted."""
    if len(chunks) == 1:
        return chunks[0]
    level = [bytes.fromhex(chunk) for chunk in chunks]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0].hex()


def spans(size: int, chunk: int = CHUNK) -> list[tuple[int, int]]:
    """(start, length) of each chunk of a file; an empty file has one empty chunk."""
    return [(start, min(chunk, size - start)) for start in range(0, max(size, 1), chunk)]


class FileEntry(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One file: its size in bytes, its Merkle root and its chunks' SHA-256, in hex."""

    size: int
    root: Hash
    chunks: tuple[Hash, ...]

    @classmethod
    def of(cls, size: int, chunks: Iterable[str]) -> FileEntry:
        hashes = tuple(chunks)
        return cls(size, merkle_root(hashes), hashes)


@dataclass(frozen=True)
class Manifest:
    """The files of an artefact by path. Raises `Invalid` when made from anything but a sound set of files."""

    files: Mapping[str, FileEntry]

    def __post_init__(self) -> None:
        if not 0 < len(self.files) <= MAX_FILES:
            raise Invalid(f"An artefact has 1 to {MAX_FILES} files, not {len(self.files)}.")
        _check_tree(self.files)
        for path, entry in self.files.items():
            _check_entry(path, entry)

    @cached_property
    def hash(self) -> str:
        """The artefact's address: SHA-256 of the canonical form, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def blobs(self) -> dict[str, int]:
        """Hash → size of every chunk, each once."""
        found: dict[str, int] = {}
        for entry in self.files.values():
            for chunk, (_, length) in zip(entry.chunks, spans(entry.size), strict=True):
                found[chunk] = length
        return found

    def to_bytes(self) -> bytes:
        """The canonical form: JSON in UTF-8 with sorted keys and no spaces."""
        return _CANONICAL.encode({"files": dict(self.files)})

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview) -> Manifest:
        """Parse any JSON form of a manifest. Raises `Invalid`, saying where it is wrong."""
        return cls(_parse(data))

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """Hash a folder in parallel. Raises `Invalid` for links and special files. Empty sub-folders are not kept."""
        with folders.OpenFolder(folder) as source:
            work = [(path, start, length) for path, size in source.files.items() for start, length in spans(size)]
            return cls.of_chunks(source.files, folders.in_parallel(lambda item: source.digest(*item), work))

    @classmethod
    def of_chunks(cls, sizes: Mapping[str, int], hashes: Iterable[str]) -> Manifest:
        """From sizes by path and the hash of every chunk, in the order of the files."""
        following = iter(hashes)
        return cls({path: FileEntry.of(size, islice(following, _count(size))) for path, size in sizes.items()})


class _Path(str):
    """A path as it was read: what tells its reader that there was one more."""

    __slots__ = ()


class _Form(msgspec.Struct, forbid_unknown_fields=True):
    files: dict[_Path, FileEntry]


def _parse(data: bytes | bytearray | memoryview) -> dict[str, FileEntry]:
    read = 0

    def path(_: type, text: str) -> _Path:
        nonlocal read
        read += 1
        if read > MAX_FILES:
            raise ValueError(f"more than {MAX_FILES} files")
        return _Path(text)

    try:
        form = msgspec.json.decode(data, type=_Form, dec_hook=path)
    except (ValueError, RecursionError) as error:
        wanted = '{"files": {path: {"size", "root", "chunks"}}}'
        raise Invalid(f"The manifest is not {wanted}: {error}.") from error
    if len(form.files) != read:
        raise Invalid("The manifest names a file twice.")
    return {str(path): entry for path, entry in form.files.items()}


def _count(size: int) -> int:
    """How many chunks a file of this size has."""
    return max(1, -(-size // CHUNK))


def _check_entry(path: str, entry: FileEntry) -> None:
    for text in (entry.root, *entry.chunks):
        check_hash(text)
    # Counted, not listed: a size of 10**18 must not cost memory.
    if entry.size < 0 or len(entry.chunks) != _count(entry.size):
        raise Invalid(f"The file {path!r} of {entry.size} bytes cannot have {len(entry.chunks)} chunks of {CHUNK} bytes.")
    if merkle_root(entry.chunks) != entry.root:
        raise Invalid(f"The root of {path!r} is not the Merkle root of its chunks.")


def _check_tree(paths: Iterable[str]) -> None:
    seen: set[str] = set()
    parents: set[str] = set()
    for path in paths:
        check_path(path)
        normal = unicodedata.normalize("NFC", path)
        if normal in seen:
            raise Invalid(f"The path {path!r} is there twice (after Unicode normalisation).")
        seen.add(normal)
        parent = normal.rpartition("/")[0]
        while parent and parent not in parents:
            parents.add(parent)
            parent = parent.rpartition("/")[0]
    if clash := sorted(seen & parents):
        raise Invalid(f"The path {clash[0]!r} is a file and a folder at once.")
