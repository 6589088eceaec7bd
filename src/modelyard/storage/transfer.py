"""Moving folders into a store and out of it, chunk by chunk: the part that artefacts and checkpoints share.

Memory is bounded by a piece a thread, however large the files are. Every byte that leaves the store through here has been
hashed first.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from modelyard.errors import Damaged, Invalid, NotFound
from modelyard.storage.folders import OpenFolder, in_parallel
from modelyard.storage.manifest import Manifest, spans
from modelyard.storage.stores import Buffer, ObjectStore

PIECE = 4 << 20
# Writing a small blob is waiting for the disk: several at once share its wait.
WRITERS = 8

KeyOf = Callable[[str], str]


def upload(store: ObjectStore, key_of: KeyOf, source: OpenFolder, *, cold: bool = False) -> Manifest:
    """Store every chunk of a folder under `key_of(hash)`; returns what was stored. Chunks that are there stay. `cold`: nobody
    will read them soon."""
    work = [(path, start, length) for path, size in source.files.items() for start, length in spans(size)]
    hashes = in_parallel(lambda item: _send(store, key_of, source, *item, cold=cold), work, WRITERS)
    return Manifest.of_chunks(source.files, hashes)


def _send(store: ObjectStore, key_of: KeyOf, source: OpenFolder, path: str, start: int, length: int, *, cold: bool) -> str:
    if length <= PIECE:
        data = source.read(path, start, length)
        digest = hashlib.sha256(data).hexdigest()
        store_blob(store, key_of(digest), digest, data)
        return digest
    with store.stage(cold=cold) as staged:
        for piece in source.pieces(path, start, length):
            staged.write(piece)
        key = key_of(staged.digest)
        if not is_whole(store, key, staged.digest, length):
            store.adopt(staged, key)
        return staged.digest


def store_blob(store: ObjectStore, key: str, digest: str, data: Buffer) -> None:
    """Write a blob whose hash is known to be right, unless it is there whole; a damaged one is replaced."""
    if not is_whole(store, key, digest, len(data)):
        store.put(key, data)


def is_whole(store: ObjectStore, key: str, digest: str, size: int) -> bool:
    """Whether a stored blob has the bytes its name promises."""
    try:
        for _ in verified(store, key, digest, size, 0, 0):
            pass
    except Damaged:
        return False
    return True


def verified(store: ObjectStore, key: str, digest: str, size: int, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start` to `stop` of a blob, in pieces, after all of it was hashed. Raises `Damaged`.

    A blob of more than one piece is read twice, and hashed twice: the first reading decides before a byte is given out, the
    second makes sure that what is given out is what was decided on.
    """
    if size <= PIECE:
        yield from _read(store, key, digest, size, start, stop)
        return
    for _ in _read(store, key, digest, size, 0, 0):
        pass
    if start < stop:
        yield from _read(store, key, digest, size, start, stop)


def _read(store: ObjectStore, key: str, digest: str, size: int, start: int, stop: int) -> Iterator[bytes]:
    if store.size(key) != size:
        raise Damaged("a chunk is missing or has another size")
    running = hashlib.sha256()
    for offset in range(0, max(size, 1), PIECE):
        try:
            piece = store.get(key) if size <= PIECE else store.get_range(key, offset, min(PIECE, size - offset))
        except (NotFound, Invalid) as error:
            raise Damaged("a chunk is missing or has another size") from error
        running.update(piece)
        last = offset + PIECE >= size
        if last and running.hexdigest() != digest:
            raise Damaged("a chunk does not match its hash")
        wanted = piece[max(start - offset, 0) : max(stop - offset, 0)]
        if wanted:
            yield wanted


def read_file(store: ObjectStore, key_of: KeyOf, manifest: Manifest, path: str, start: int, stop: int) -> Iterator[bytes]:
    """Bytes `start` to `stop` of a file, verified chunk by chunk. Raises `Damaged` naming the file."""
    entry = manifest.files[path]
    for digest, (offset, length) in zip(entry.chunks, spans(entry.size), strict=True):
        low, high = max(start - offset, 0), min(stop - offset, length)
        if low < high:
            try:
                yield from verified(store, key_of(digest), digest, length, low, high)
            except Damaged as error:
                raise damaged(path, f"{error.message} (at byte {offset})") from error


def download(store: ObjectStore, key_of: KeyOf, manifest: Manifest, target: Path) -> None:
    """Write an artefact's files into a new folder, verified. Raises `Damaged` naming the file."""
    for folder in sorted({(target / path).parent for path in manifest.files}):
        folder.mkdir(parents=True, exist_ok=True)
    for path, entry in manifest.files.items():
        if len(entry.chunks) > 1:
            with (target / path).open("xb") as file:
                os.truncate(file.fileno(), entry.size)

    def receive(item: tuple[str, str, int, int]) -> None:
        path, digest, offset, length = item
        with (target / path).open("xb" if manifest.files[path].size == length else "r+b", buffering=0) as file:
            file.seek(offset)
            try:
                for piece in _read(store, key_of(digest), digest, length, 0, length):
                    _write(file, piece)
            except Damaged as error:
                raise damaged(path, f"{error.message} (at byte {offset})") from error

    in_parallel(receive, _chunks(manifest))


def _write(file: io.FileIO, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def check_folder(manifest: Manifest, folder: Path) -> None:
    """Hash a local copy again. Raises `Damaged` naming the file that is not as the manifest says."""
    try:
        with OpenFolder(folder) as found:
            _check_names(manifest, found)
            chunks = _chunks(manifest)
            actual = in_parallel(lambda chunk: found.digest(chunk[0], chunk[2], chunk[3]), chunks)
            for (path, digest, _, _), computed in zip(chunks, actual, strict=True):
                if computed != digest:
                    raise damaged(path, "its content has changed")
    except (Invalid, OSError) as error:
        raise Damaged(f"The local copy is damaged: {error}") from error


def damaged(path: str, why: str) -> Damaged:
    return Damaged(f"The file '{path}' is damaged: {why}. It was refused.")


def _check_names(manifest: Manifest, found: OpenFolder) -> None:
    for path in sorted({*manifest.files, *found.files}):
        if path not in found.files:
            raise damaged(path, "it is missing")
        if path not in manifest.files:
            raise damaged(path, "it does not belong there")
        if found.files[path] != manifest.files[path].size:
            raise damaged(path, "its size has changed")


def _chunks(manifest: Manifest) -> list[tuple[str, str, int, int]]:
    return [
        (path, digest, offset, length)
        for path, entry in manifest.files.items()
        for digest, (offset, length) in zip(entry.chunks, spans(entry.size), strict=True)
    ]
