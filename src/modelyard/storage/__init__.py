"""Where bytes live: an object store, artefacts in it per project and addressed by content, and a node's verified cache.

The catalogue and jobs publish and read through `Artefacts`; the client uses `Manifest` to upload. Nothing here knows names,
versions, the database or HTTP: a project is a word in a key, and a blob of one project is invisible to every other.
"""

from modelyard.storage.artefacts import Artefacts
from modelyard.storage.manifest import CHUNK, FileEntry, Manifest, check_hash, check_path, merkle_root
from modelyard.storage.stores import BucketStore, FolderStore, ObjectStore, Staged, open_store

__all__ = [
    "CHUNK",
    "Artefacts",
    "BucketStore",
    "FileEntry",
    "FolderStore",
    "Manifest",
    "ObjectStore",
    "Staged",
    "check_hash",
    "check_path",
    "merkle_root",
    "open_store",
]
