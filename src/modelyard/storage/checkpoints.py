"""A job's checkpoints on the object store, so that a lost node loses nothing: the last few and the best, the rest collected.

Chunks lie below a number of their own, not among the project's blobs, so that what is superseded is dropped at once.
`latest.json` is written last, in one go: it names the numbers that are kept and holds the manifests that everything is verified
against. Whoever is killed in between leaves chunks that nothing names, which the next one collects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from modelyard.errors import Damaged, Invalid, NotFound, Unavailable
from modelyard.storage import transfer
from modelyard.storage.folders import OpenFolder, remove
from modelyard.storage.manifest import Manifest
from modelyard.storage.stores import ObjectStore


class Kept(msgspec.Struct, frozen=True):
    """A whole checkpoint. `score`: the lower the better; None where nobody said how good it is."""

    seq: int
    hash: str
    manifest: msgspec.Raw
    score: float | None = None


class _Record(msgspec.Struct):
    """`furthest`: the highest step of all that were stored, also of those that are kept no more."""

    kept: list[Kept]
    furthest: int | None = None


class Stored(NamedTuple):
    """A checkpoint's number, from 1, and whether the job had never come so far."""

    number: int
    further: bool


def choose(kept: Sequence[Kept], last: int) -> list[Kept]:
    """Of checkpoints, oldest first, those to keep: the last so many, and the best, of equals the newest."""
    scored = [one for one in kept if one.score is not None]
    best = min(scored, key=lambda one: (one.score, -one.seq), default=None)
    newest = kept[max(0, len(kept) - max(1, last)) :]
    return [one for one in kept if one in newest or one is best]


class Checkpoints:
    """The checkpoints of one job below `prefix`. One writer at a time: the attempt that holds the job."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def put(self, source: OpenFolder, *, step: int = 0, score: float | None = None, last: int = 1) -> Stored:
        """Store a checkpoint of `step` and forget those that are to be kept no more."""
        record = self._record()
        kept, further = record.kept, record.furthest is None or step > record.furthest
        number = kept[-1].seq + 1 if kept else 1
        try:
            manifest = transfer.upload(self._store, self._key_of(number), source, cold=True)
        except Unavailable:  # a full disk, most likely: what was written of it is in the way
            self._forget(keep=[one.seq for one in kept])
            raise
        found = choose([*kept, Kept(number, manifest.hash, msgspec.Raw(manifest.to_bytes()), score)], last)
        furthest = step if further else record.furthest
        self._store.put(f"{self._prefix}/latest.json", msgspec.json.encode(_Record(found, furthest)))
        self._forget(keep=[one.seq for one in found])
        return Stored(number, further)

    def fetch(self, target: Path) -> bool:
        """Write the newest checkpoint that is whole into `target`. False: there is none. Raises `Damaged` where none of those
        that were kept is whole. Its writer may go on meanwhile."""
        kept = self._kept()
        newest = kept[-1].seq if kept else 0
        while kept:
            one = kept.pop()
            remove(target)
            try:
                transfer.download(self._store, self._key_of(one.seq), _manifest(one), target)
            except (Damaged, NotFound):
                now = self._kept()
                if now and now[-1].seq > newest:  # it may be not damaged but superseded
                    kept, newest = now, now[-1].seq
                elif not kept:
                    raise
            else:
                return True
        return False

    def drop(self) -> None:
        # The name first: what is left of a killed drop must not look like a checkpoint.
        self._store.delete(f"{self._prefix}/latest.json")
        self._forget(keep=())

    def _key_of(self, number: int) -> transfer.KeyOf:
        return lambda digest: f"{self._prefix}/{number}/{digest}"

    def _kept(self) -> list[Kept]:
        """Oldest first."""
        return self._record().kept

    def _record(self) -> _Record:
        try:
            return msgspec.json.decode(self._store.get(f"{self._prefix}/latest.json"), type=_Record)
        except NotFound:
            return _Record([])
        except ValueError as error:
            raise Damaged(_BROKEN) from error

    def _forget(self, keep: Sequence[int]) -> None:
        kept = tuple(f"{self._prefix}/{number}/" for number in keep)
        for key in list(self._store.list(self._prefix)):
            if not key.startswith(kept) and key != f"{self._prefix}/latest.json":
                self._store.delete(key)


def _manifest(one: Kept) -> Manifest:
    try:
        manifest = Manifest.from_bytes(one.manifest)
    except (ValueError, Invalid) as error:
        raise Damaged(_BROKEN) from error
    if manifest.hash != one.hash:
        raise Damaged(_BROKEN)
    return manifest


_BROKEN = "The record of the newest checkpoint is damaged; drop them to start over."
