"""What an artefact is made of: paths, sizes and hashes, in one canonical form whose SHA-256 is the artefact's hash.

A file is cut into chunks of 64 MiB; its root is the Merkle tree over their SHA-256, so that hashing is parallel, uploads
resume chunk by chunk and ranges verify. A `Manifest` that exists is valid: every way to make one goes through its checks.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid
from modelyard.storage import folders

CHUNK = 64 << 20
MAX_FILES = 100_000
_HEX = re.compile(r"[0-9a-f]{64}")


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
    if len(raw) > 1024 or any(len(part.encode()) > 255 for part in parts):
        raise Invalid(f"The path '{path[:60]}…' is too long: at most 1024 bytes, 255 between slashes.")
    if any(unicodedata.category(char) in ("Cc", "Zl", "Zp") for char in path):
        raise Invalid(f"The path {path!r} has control characters; rename the file.")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path:
        raise Invalid(f"The path {path!r} is not plain: use relative paths with '/', without '.', '..' or empty parts.")


def merkle_root(chunks: Sequence[str]) -> str:
    """The root over the chunks' hashes (hex): one is itself; else SHA-256(0x01 + left + right), an odd node is promoted."""
    level = [bytes.fromhex(chunk) for chunk in chunks]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + (level[-1:] if len(level) % 2 else [])
    return level[0].hex()


def spans(size: int, chunk: int = CHUNK) -> list[tuple[int, int]]:
    """(start, length) of each chunk of a file; an empty file has one empty chunk."""
    return [(start, min(chunk, size - start)) for start in range(0, max(size, 1), chunk)]


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file: its size in bytes, its Merkle root and its chunks' SHA-256, in hex."""

    size: int
    root: str
    chunks: tuple[str, ...]

    @classmethod
    def of(cls, size: int, chunks: Iterable[str]) -> FileEntry:
        hashes = tuple(chunks)
        return cls(size, merkle_root(hashes), hashes)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of an artefact by path. Raises `Invalid` when made from anything but a sound set of files."""

    files: Mapping[str, FileEntry]

    def __post_init__(self) -> None:
        if not 0 < len(self.files) <= MAX_FILES:
            raise Invalid(f"An artefact has 1 to {MAX_FILES} files, not {len(self.files)}.")
        _check_tree(self.files)
        for path, entry in self.files.items():
            _check_entry(path, entry)

    @property
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

    def to_json(self) -> dict[str, Any]:
        files = {path: {"size": e.size, "root": e.root, "chunks": list(e.chunks)} for path, e in self.files.items()}
        return {"files": files}

    def to_bytes(self) -> bytes:
        """The canonical form: JSON in UTF-8 with sorted keys and no spaces."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Parse any JSON form of a manifest. Raises `Invalid`, naming the file that is wrong."""
        try:
            tree = json.loads(data, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise Invalid(f"The manifest is not JSON: {error}.") from error
        if not isinstance(tree, dict) or set(tree) != {"files"} or not isinstance(tree["files"], dict):
            raise Invalid('A manifest is {"files": {path: {"size", "root", "chunks"}}}.')
        return cls({path: _entry(path, value) for path, value in tree["files"].items()})

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """Hash a folder in parallel. Raises `Invalid` for links and special files. Empty sub-folders are not kept."""
        with folders.OpenFolder(folder) as source:
            work = [(path, start, length) for path, size in source.files.items() for start, length in spans(size)]
            hashes = folders.in_parallel(lambda item: source.digest(*item), work)
            return cls.of_chunks(source.files, zip((path for path, _, _ in work), hashes, strict=True))

    @classmethod
    def of_chunks(cls, sizes: Mapping[str, int], chunks: Iterable[tuple[str, str]]) -> Manifest:
        """From sizes by path and (path, hash) of every chunk, in order."""
        hashes: dict[str, list[str]] = {path: [] for path in sizes}
        for path, digest in chunks:
            hashes[path].append(digest)
        return cls({path: FileEntry.of(size, hashes[path]) for path, size in sizes.items()})


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key twice")
    return found


def _entry(path: str, value: Any) -> FileEntry:
    if not isinstance(value, dict) or set(value) != {"size", "root", "chunks"}:
        raise Invalid(f"The file {path!r} of the manifest must have 'size', 'root' and 'chunks', and nothing else.")
    size, root, chunks = value["size"], value["root"], value["chunks"]
    texts = [root, *chunks] if isinstance(chunks, list) else [None]
    if type(size) is not int or not all(isinstance(text, str) for text in texts):
        raise Invalid(f"The file {path!r} of the manifest needs a whole number as size, and hashes as root and chunks.")
    return FileEntry(size, root, tuple(chunks))


def _check_entry(path: str, entry: FileEntry) -> None:
    for text in (entry.root, *entry.chunks):
        check_hash(text)
    # Counted, not listed: a size of 10**18 must not cost memory.
    if entry.size < 0 or len(entry.chunks) != max(1, -(-entry.size // CHUNK)):
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
        parts = normal.split("/")
        parents.update("/".join(parts[:end]) for end in range(1, len(parts)))
    if clash := sorted(seen & parents):
        raise Invalid(f"The path {clash[0]!r} is a file and a folder at once.")
