"""Artefacts up and down, chunk by chunk: what the platform has is not sent again, what comes is verified as it comes.

A chunk of at most 64 MiB is the unit of both ways: several travel at once, each is streamed in small pieces so that memory
stays bounded, and one that breaks is the only one to be sent or fetched again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from modelyard.client.wire import PAUSES, Wire, with_query
from modelyard.errors import Conflict, Damaged, Internal, Invalid, NotFound, Unavailable
from modelyard.storage.batches import HEADER, packed, unpacked
from modelyard.storage.folders import in_parallel
from modelyard.storage.manifest import Manifest, spans

Progress = Callable[[int, int], None]
Files = Mapping[str, str | Path]
T = TypeVar("T")
PIECE = 1 << 20
_AT_ONCE = 4
# Below this, asking whether a chunk is there costs as much as sending it; and many are sent together.
_SMALL = 64 << 10
_BATCH = 1 << 20
# Hashes that are asked for together: an address has room for no more.
_TOGETHER = 100


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of a file: `hash` is the SHA-256 of `length` bytes from `start`; `whole` if it is all of the file."""

    path: str
    hash: str
    start: int
    length: int
    whole: bool


def files_of(source: str | Path) -> dict[str, str]:
    """What to upload, by the path it will have: a file under its own name, or a folder's files, links to files followed.
    Hidden files and `__pycache__` stay behind. Raises `Invalid` where there is nothing."""
    source = Path(source).expanduser()
    if source.is_file():
        return {source.name: str(source)}
    if not source.is_dir():
        raise Invalid(f"There is no file or folder '{source}'.")
    files: dict[str, str] = {}
    for root, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not _left_behind(name)]
        below = Path(root).relative_to(source).as_posix()
        for name in names:
            if not _left_behind(name) and os.path.isfile(place := f"{root}/{name}"):  # noqa: PTH113 a Path is ten times a name
                files[name if below == "." else f"{below}/{name}"] = place
    if not files:
        raise Invalid(f"The folder '{source}' has no files to upload.")
    return dict(sorted(files.items()))


def model_files(source: str | Path, module: str | None) -> tuple[dict[str, str], dict[str, str]]:
    """A model's files, with the one that `module` ('model.py:SimpleModel') is in; and what an import's config says of it."""
    if not module:
        return files_of(source), {}
    file, _, cls = module.rpartition(":")
    if not file:
        raise Invalid(f"'{module}' names no module; expected file.py:Class, for example model.py:SimpleModel.")
    return files_of(source) | files_of(file), {"module": f"{Path(file).name}:{cls}"}


def _left_behind(name: str) -> bool:
    return name.startswith(".") or name == "__pycache__"


def chunks_of(manifest: Manifest) -> list[Chunk]:
    """Every chunk of every file, in order."""
    return [
        Chunk(path, digest, start, length, len(entry.chunks) == 1)
        for path, entry in manifest.files.items()
        for digest, (start, length) in zip(entry.chunks, spans(entry.size), strict=True)
    ]


def manifest_of(files: Files) -> Manifest:
    """Hash files by the path they will have in the artefact, several chunks at once."""
    sizes = {name: Path(path).stat().st_size for name, path in files.items()}
    work = [(name, start, length) for name, size in sizes.items() for start, length in spans(size)]

    def digest(item: tuple[str, int, int]) -> str:
        name, start, length = item
        sha = hashlib.sha256()
        for piece in pieces(files[name], start, length):
            sha.update(piece)
        return sha.hexdigest()

    return Manifest.of_chunks(sizes, in_parallel(digest, work, _AT_ONCE))


def pieces(path: str | Path, start: int, length: int) -> Iterator[bytes]:
    """A range of a file in pieces of 1 MiB."""
    with Path(path).open("rb") as file:
        file.seek(start)
        while length > 0 and (piece := file.read(min(PIECE, length))):
            length -= len(piece)
            yield piece


def upload(wire: Wire, files: Files, progress: Progress | None = None) -> str:
    """Publish files as an artefact and return its hash. Done again after a break, it sends only what is missing."""
    manifest = manifest_of(files)
    distinct = {chunk.hash: chunk for chunk in chunks_of(manifest)}.values()
    total = sum(chunk.length for chunk in distinct)
    _in_parallel(lambda batch: _send(wire, files, batch), batched(distinct), total, progress)
    published = str(_publish(wire, manifest)["hash"])
    if published != manifest.hash:
        raise Internal(f"The platform published artefact {published} where {manifest.hash} was sent.")
    return published


def batched(chunks: Iterable[Chunk], most: int | None = None) -> list[list[Chunk]]:
    """What goes together: each larger chunk alone, then the small ones by about 1 MiB, `most` of them where that is given."""
    alone: list[list[Chunk]] = []
    together: list[list[Chunk]] = []
    room = 0
    for chunk in chunks:
        if chunk.length >= _SMALL:
            alone.append([chunk])
            continue
        if room <= 0 or len(together[-1]) == most:
            together.append([])
            room = _BATCH
        together[-1].append(chunk)
        room -= HEADER + chunk.length
    return [*alone, *together]


def _send(wire: Wire, files: Files, batch: Sequence[Chunk]) -> int:
    """Upload chunks that go together; says how many bytes of files they are."""
    first = batch[0]
    headers = {"Content-Type": "application/octet-stream"}
    if first.length < _SMALL:
        data = b"".join(packed(chunk.hash, _content(files[chunk.path], chunk)) for chunk in batch)
        wire.send("PUT", "/api/blobs", body=lambda: (data,), headers={**headers, "Content-Length": str(len(data))})
    elif not wire.exists(address := f"/api/blobs/sha256/{first.hash}"):
        headers["Content-Length"] = str(first.length)
        wire.send("PUT", address, body=lambda: pieces(files[first.path], first.start, first.length), headers=headers)
    return sum(chunk.length for chunk in batch)


def _content(path: str | Path, chunk: Chunk) -> bytes:
    data = b"".join(pieces(path, chunk.start, chunk.length))
    if len(data) != chunk.length:
        raise Invalid(f"'{chunk.path}' changed while it was uploaded: upload files nobody writes to.")
    return data


def _publish(wire: Wire, manifest: Manifest) -> dict[str, Any]:
    data = manifest.to_bytes()
    headers = {"Idempotency-Key": secrets.token_hex(16), "Content-Type": "application/json", "Content-Length": str(len(data))}
    answer: dict[str, Any] = wire.send("POST", "/api/artefacts", body=lambda: (data,), headers=headers).json()
    return answer


def fetch(wire: Wire, artefact: str, folder: str | Path, progress: Progress | None = None) -> Path:
    """An artefact as a new folder, whole or not at all; every chunk is checked against the hash that was asked for.

    Raises `Conflict` where the folder has something in it, `Damaged` where bytes do not match their hash.
    """
    target = Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise Conflict(f"'{target}' exists and is not an empty folder; name another one.")
    manifest = Manifest.from_bytes(wire.send("GET", f"/api/artefacts/{artefact}").content)
    if manifest.hash != artefact:
        raise Damaged(f"The manifest of artefact {artefact} does not match its hash; it was refused.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for path, entry in manifest.files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            with (partial / path).open("wb") as file:
                file.truncate(entry.size)
        batches = batched(chunks_of(manifest), _TOGETHER)
        _in_parallel(lambda batch: _fetch(wire, artefact, batch, partial), batches, manifest.size, progress)
        partial.chmod(0o755)
        partial.replace(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _fetch(wire: Wire, artefact: str, batch: Sequence[Chunk], folder: Path) -> int:
    """Download chunks that go together; says how many bytes of files they are."""
    if len(batch) == 1:
        return _fetch_chunk(wire, artefact, batch[0], folder / batch[0].path)
    wanted = {"hashes": ",".join(dict.fromkeys(chunk.hash for chunk in batch))}
    try:
        came = dict(unpacked(wire.send("GET", with_query("/api/blobs", wanted)).content))
    except (Damaged, NotFound):  # of one of them, which names its file when it is asked for by itself
        return sum(_fetch_chunk(wire, artefact, chunk, folder / chunk.path) for chunk in batch)
    for chunk in batch:
        data = came.get(chunk.hash, b"")
        if len(data) != chunk.length or hashlib.sha256(data).hexdigest() != chunk.hash:
            raise Damaged(f"'{chunk.path}' does not match its hash; it was refused.")
        with (folder / chunk.path).open("r+b") as file:
            os.pwrite(file.fileno(), data, chunk.start)
    return sum(chunk.length for chunk in batch)


def _fetch_chunk(wire: Wire, artefact: str, chunk: Chunk, file: Path) -> int:
    """One chunk into its place, tried again where the connection breaks."""
    for _ in PAUSES:
        try:
            return _fetch_once(wire, artefact, chunk, file)
        except Unavailable:
            continue
    return _fetch_once(wire, artefact, chunk, file)


def _fetch_once(wire: Wire, artefact: str, chunk: Chunk, file: Path) -> int:
    headers = {} if chunk.whole else {"Range": f"bytes={chunk.start}-{chunk.start + chunk.length - 1}"}
    sha, at = hashlib.sha256(), chunk.start
    with file.open("r+b") as target:
        for piece in wire.download(f"/api/artefacts/{artefact}/files/{quote(chunk.path)}", headers):
            if at + len(piece) > chunk.start + chunk.length:
                raise Damaged(f"'{chunk.path}' is longer than its manifest says; it was refused.")
            os.pwrite(target.fileno(), piece, at)
            sha.update(piece)
            at += len(piece)
    if sha.hexdigest() != chunk.hash:
        raise Damaged(f"'{chunk.path}' does not match its hash; it was refused.")
    return chunk.length


def _in_parallel(work: Callable[[T], int], items: Sequence[T], total: int, progress: Progress | None) -> None:
    """Do `total` bytes of work, a few items at once; the first error stops what has not begun. `work` says how many bytes it
    did. Progress is told in this thread."""
    done = 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        running: list[Future[int]] = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(running):
                done += future.result()
                if progress:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
