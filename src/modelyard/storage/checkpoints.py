"""A job's checkpoints: the newest whole one, on the object store, so that a lost node loses nothing.

Chunks lie below a number of their own, not among the project's blobs, so that a superseded checkpoint is dropped at once.
`latest.json` is written last, in one go: it names the number and holds the manifest that everything is verified against.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from modelyard.errors import Damaged, Invalid, NotFound
from modelyard.storage import transfer
from modelyard.storage.folders import OpenFolder, remove
from modelyard.storage.manifest import Manifest
from modelyard.storage.stores import ObjectStore


class _Latest(msgspec.Struct):
    seq: int
    hash: str
    manifest: msgspec.Raw


class Checkpoints:
    """The checkpoints of one job below `prefix`. One writer at a time: the attempt that holds the job."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    def put(self, source: OpenFolder) -> int:
        """Store a checkpoint and forget the older ones; returns its number, from 1."""
        latest = self._latest()
        number = latest[0] + 1 if latest else 1
        manifest = transfer.upload(self._store, lambda digest: f"{self._prefix}/{number}/{digest}", source)
        record = _Latest(number, manifest.hash, msgspec.Raw(manifest.to_bytes()))
        self._store.put(f"{self._prefix}/latest.json", msgspec.json.encode(record))
        self._forget(keep=number)
        return number

    def fetch(self, target: Path) -> bool:
        """Write the newest checkpoint into `target`. False: there is none."""
        latest = self._latest()
        if latest is None:
            return False
        number, manifest = latest
        remove(target)
        transfer.download(self._store, lambda digest: f"{self._prefix}/{number}/{digest}", manifest, target)
        return True

    def drop(self) -> None:
        # The name first: what is left of a killed drop must not look like a checkpoint.
        self._store.delete(f"{self._prefix}/latest.json")
        self._forget(keep=None)

    def _latest(self) -> tuple[int, Manifest] | None:
        try:
            record = msgspec.json.decode(self._store.get(f"{self._prefix}/latest.json"), type=_Latest)
            manifest = Manifest.from_bytes(record.manifest)
            if manifest.hash != record.hash:
                raise Invalid("The manifest does not match its hash.")
            return record.seq, manifest
        except NotFound:
            return None
        except (ValueError, Invalid) as error:
            raise Damaged("The record of the newest checkpoint is damaged; drop them to start over.") from error

    def _forget(self, keep: int | None) -> None:
        kept = f"{self._prefix}/{keep}/"
        for key in list(self._store.list(self._prefix)):
            if not key.startswith(kept) and key != f"{self._prefix}/latest.json":
                self._store.delete(key)
