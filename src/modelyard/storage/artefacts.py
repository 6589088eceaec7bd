"""Artefacts per project: published whole or not at all, verified into a node's read-only cache at every use.

Used by the routes (uploads, downloads), the scheduler (inputs, outputs, checkpoints) and the controller (models to serve).
The manifest is written last and only once: that it is there means that the artefact is whole. What a killed publication leaves
are blobs without a manifest; the next publication of the same content uses them. A blob belongs to one project, so that nobody
learns from an upload what another project has.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from modelyard.errors import Damaged, Invalid, NotFound, TooLarge, Unavailable, not_found
from modelyard.storage import transfer
from modelyard.storage.checkpoints import Checkpoints, Stored
from modelyard.storage.folders import OpenFolder, in_parallel, remove, seal
from modelyard.storage.manifest import CHUNK, FileEntry, Manifest, check_hash
from modelyard.storage.stores import Buffer, ObjectStore, Staged

# Bytes of the cache's disk that no local copy takes: the database beside it needs room to write.
RESERVE = 64 << 20
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


class Artefacts:
    """The artefacts of every project in `store`, and this node's verified copies below `cache`.

    Safe to use from several threads and processes at once. Raises `Unavailable` when the store fails.
    """

    def __init__(self, store: ObjectStore, cache: Path) -> None:
        self._store = store
        self._cache = cache

    def has_blob(self, project: str, digest: str) -> bool:
        return self._store.size(_blob_key(project, digest)) is not None

    def put_blob(self, project: str, digest: str, data: Buffer) -> None:
        """Store one chunk. Raises `Invalid` if its SHA-256 is not `digest`, `TooLarge` past 64 MiB."""
        self.put_blobs(project, [(digest, data)])

    def put_blobs(self, project: str, blobs: Iterable[tuple[str, Buffer]]) -> int:
        """Store chunks, and say how many different ones; all are verified before the first is stored. What is stored when the
        store fails stays. Raises as `put_blob`."""
        checked: dict[str, Buffer] = {}
        for digest, data in blobs:
            _check_blob(digest, len(data), hashlib.sha256(data).hexdigest())
            checked[digest] = data
        keyed = [(_blob_key(project, digest), digest, data) for digest, data in checked.items()]
        in_parallel(lambda blob: transfer.store_blob(self._store, *blob), keyed, transfer.WRITERS)
        return len(keyed)

    def blobs(self, project: str, digests: Iterable[str], most: int) -> Iterator[tuple[str, bytes]]:
        """Chunks, verified. Raises `NotFound`, `Damaged`, or `TooLarge` where they have more than `most` bytes together."""
        for digest in digests:
            key = _blob_key(project, digest)
            size = self._store.size(key)
            if size is None:
                raise NotFound(f"There is no blob {digest} in this project.")
            most -= size
            if most < 0:
                raise TooLarge("These blobs are too large to be sent together; ask for fewer, or for the file they are of.")
            data = self._store.get(key)
            if hashlib.sha256(data).hexdigest() != digest:
                raise Damaged(f"The blob {digest} is damaged; it was refused.")
            yield digest, data

    def stage(self) -> AbstractContextManager[Staged]:
        """A place for a chunk while it comes; `adopt_blob` keeps it."""
        return self._store.stage()

    def adopt_blob(self, project: str, digest: str, staged: Staged) -> None:
        """Store the chunk that was staged. Raises as `put_blob`."""
        key = _blob_key(project, digest)
        _check_blob(digest, staged.size, staged.digest)
        self._store.adopt(staged, key)

    def publish(self, project: str, folder: Path, *, within: Path | None = None) -> Manifest:
        """Store a folder as an artefact. Raises `Invalid` for links, special files, and files that change meanwhile.

        Give `within` when others can write above `folder` (a job's work folder): nothing between the two may be a link.
        """
        with OpenFolder(folder, within) as source:
            manifest = transfer.upload(self._store, lambda digest: _blob_key(project, digest), source)
        self._name(project, manifest)
        return manifest

    def publish_manifest(self, project: str, manifest: Manifest) -> None:
        """Make an artefact of blobs that are there. Raises `Invalid` listing those that are missing or of another size."""
        wrong = [digest for digest, size in manifest.blobs().items() if self._store.size(_blob_key(project, digest)) != size]
        if wrong:
            shown = ", ".join(wrong[:10]) + (", …" if len(wrong) > 10 else "")
            raise Invalid(f"{len(wrong)} blobs are missing or of another size; upload them first: {shown}")
        self._name(project, manifest)

    def manifest(self, project: str, digest: str) -> Manifest:
        """Raises `NotFound`, or `Damaged` if the stored manifest is not what its hash says."""
        try:
            data = self._store.get(_manifest_key(project, digest))
        except NotFound:
            raise NotFound(f"There is no artefact {digest} in this project.") from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise Damaged(f"The manifest of artefact {digest} is damaged; it was refused.")
        return Manifest.from_bytes(data)

    def local(self, project: str, digest: str) -> Path:
        """The artefact as a read-only folder on this node, hashed again at every call.

        A bad or missing local copy is replaced from the store. Raises `NotFound`, or `Damaged` naming the file when the store's
        own copy is bad.
        """
        manifest = self.manifest(project, digest)
        target = self._cache / project / digest
        if not _sound(manifest, target):
            with self._locked(project, digest):
                if not _sound(manifest, target):
                    self._fetch(project, manifest, target)
        return target

    def stat(self, project: str, digest: str, path: str) -> FileEntry:
        """Size and root of one file. Raises `NotFound`."""
        return _entry(self.manifest(project, digest), path)

    def read_range(self, project: str, digest: str, path: str, start: int, length: int) -> bytes:
        """Bytes of a file from the store; the chunks they lie in are verified. Raises `Invalid` outside the file."""
        return b"".join(self.stream(project, digest, path, start, start + length))

    def stream(self, project: str, digest: str, path: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The same in pieces of at most 4 MiB; `end` is exclusive, None the end of the file. What can be refused is refused
        before this returns, but for `Damaged`, which names the file when the reading gets there."""
        manifest = self.manifest(project, digest)
        size = _entry(manifest, path).size
        stop = size if end is None else end
        if not 0 <= start <= stop <= size:
            raise Invalid(f"The range {start} to {stop} is not inside '{path}', which has {size} bytes.")
        return transfer.read_file(self._store, lambda chunk: _blob_key(project, chunk), manifest, path, start, stop)

    def put_checkpoint(
        self,
        project: str,
        job: str,
        folder: Path,
        *,
        within: Path | None = None,
        step: int = 0,
        score: float | None = None,
        last: int = 1,
    ) -> Stored:
        """Keep a folder as the job's newest checkpoint. Once it is whole those are dropped that are neither among the `last`
        nor the one with the lowest `score`."""
        with OpenFolder(folder, within) as source:
            return self._checkpoints(project, job).put(source, step=step, score=score, last=last)

    def latest_checkpoint(self, project: str, job: str, target: Path) -> Path | None:
        """Write the newest whole checkpoint into `target`, replacing what is there; an older one where that is damaged. None:
        there is none. Raises `Damaged` where none is whole."""
        return target if self._checkpoints(project, job).fetch(target) else None

    def drop_checkpoints(self, project: str, job: str) -> None:
        self._checkpoints(project, job).drop()

    def checkpointed(self, project: str) -> set[str]:
        """The project's jobs that have checkpoints, or what is left of some."""
        prefix = f"{_project_key(project)}/checkpoints"
        return {key.removeprefix(f"{prefix}/").partition("/")[0] for key in self._store.list(prefix)}

    def sweep(self, before: float) -> int:
        """Remove what killed writers left in the store and nobody has touched since `before`; returns how much."""
        return self._store.sweep(before)

    def _checkpoints(self, project: str, job: str) -> Checkpoints:
        return Checkpoints(self._store, f"{_project_key(project)}/checkpoints/{_word(job, 'job')}")

    def _name(self, project: str, manifest: Manifest) -> None:
        """Write the manifest: from here on the artefact exists. One that a power cut damaged is replaced."""
        key, data = _manifest_key(project, manifest.hash), manifest.to_bytes()
        if not self._store.put(key, data, create=True) and self._store.get(key) != data:
            self._store.put(key, data)

    def _fetch(self, project: str, manifest: Manifest, target: Path) -> None:
        """Replace `target` by a verified copy, at once and whole. Called under its lock: any leftover is a dead attempt's."""
        for leftover in target.parent.glob(f".{target.name}.*.part"):
            remove(leftover)
        fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        # A manifest may name one blob many times: what is small in the store can be large here.
        if manifest.size > (free := shutil.disk_usage(target.parent).free - RESERVE):
            raise Unavailable(
                f"Artefact {target.name} needs {manifest.size} bytes on this node, which has {max(0, free)} to spare."
            )
        try:
            transfer.download(self._store, lambda chunk: _blob_key(project, chunk), manifest, fresh)
            seal(fresh)
            if target.exists() or target.is_symlink():
                target.rename(target.with_name(f".{target.name}.{secrets.token_hex(4)}.part"))
            fresh.rename(target)
        except OSError as error:
            raise Unavailable(f"The local copy of artefact {target.name} cannot be written: {error.strerror}.") from error
        finally:
            for leftover in target.parent.glob(f".{target.name}.*.part"):
                remove(leftover)

    @contextmanager
    def _locked(self, project: str, digest: str) -> Iterator[None]:
        """One writer of a local copy at a time, over threads and processes; the lock dies with its holder."""
        folder = self._cache / project
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder / f".{digest}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _check_blob(digest: str, size: int, actual: str) -> None:
    check_hash(digest)
    if size > CHUNK:
        raise TooLarge(f"A blob has at most {CHUNK} bytes, not {size}; cut the file into chunks.")
    if actual != digest:
        raise Invalid(f"The blob's SHA-256 is {actual}, not {digest}; it was changed on the way.")


def _entry(manifest: Manifest, path: str) -> FileEntry:
    if path not in manifest.files:
        raise not_found("file", path, manifest.files)
    return manifest.files[path]


def _sound(manifest: Manifest, folder: Path) -> bool:
    try:
        transfer.check_folder(manifest, folder)
    except Damaged:
        return False
    return True


def _word(text: str, what: str) -> str:
    if not _WORD.fullmatch(text):
        raise Invalid(f"'{text[:40]}' is no {what}: letters, digits, '.', '_' and '-', at most 128.")
    return text


def _project_key(project: str) -> str:
    return f"projects/{_word(project, 'project')}"


def _blob_key(project: str, digest: str) -> str:
    check_hash(digest)
    return f"{_project_key(project)}/blobs/{digest[:2]}/{digest}"


def _manifest_key(project: str, digest: str) -> str:
    check_hash(digest)
    return f"{_project_key(project)}/artefacts/{digest}.json"
