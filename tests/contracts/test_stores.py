"""The contract of `storage.ObjectStore`, over the folder, the published double and obstore's own memory; and, over a folder,
what only real processes show: a publication killed at any moment, and many processes that want one artefact at once."""

import hashlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from obstore.store import MemoryStore as ObstoreMemory

from modelyard.errors import Invalid, NotFound
from modelyard.storage import Artefacts, BucketStore, FolderStore, ObjectStore
from modelyard.testing import MemoryStore


@pytest.fixture(params=["folder", "memory", "bucket"])
def store(request, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    return MemoryStore() if request.param == "memory" else BucketStore(ObstoreMemory())


def test_what_is_put_is_there(store):
    assert store.put("a/b", b"hello")
    assert store.get("a/b") == b"hello"
    assert store.size("a/b") == 5


@pytest.mark.parametrize("data", [b"", bytearray(b"xy"), memoryview(b"xyz")[1:], bytes(6 << 20)])
def test_any_buffer_can_be_put(store, data):
    store.put("k", data)
    assert store.get("k") == bytes(data)
    assert store.size("k") == len(data)


def test_put_overwrites_whole(store):
    store.put("k", b"long content")
    assert store.put("k", b"new")
    assert store.get("k") == b"new"


def test_create_writes_once(store):
    same = b"1"
    assert store.put("k", same, create=True)
    assert not store.put("k", b"2", create=True)
    assert not store.put("k", same, create=True)
    assert store.get("k") == b"1"


def test_of_many_creators_exactly_one_wins(store):
    with ThreadPoolExecutor(8) as pool:
        wins = list(pool.map(lambda n: store.put("k", b"%d" % n, create=True), range(32)))
    assert wins.count(True) == 1
    assert store.get("k") == b"%d" % wins.index(True)


@pytest.mark.parametrize("pieces", [(), (b"",), (b"one ", bytearray(b"two"), memoryview(b" three")), (bytes(5 << 20), b"x")])
@pytest.mark.parametrize("cold", [False, True])
def test_what_is_staged_gets_its_key_when_it_is_whole(store, pieces, cold):
    content = b"".join(pieces)
    with store.stage(cold=cold) as staged:
        for piece in pieces:
            staged.write(piece)
        assert (store.size("a/b"), list(store.list("a"))) == (None, [])
        assert (staged.size, staged.digest) == (len(content), hashlib.sha256(content).hexdigest())
        store.adopt(staged, "a/b")
    assert (store.get("a/b"), store.size("a/b"), list(store.list("a"))) == (content, len(content), ["a/b"])


def test_what_is_adopted_replaces_what_was_there(store):
    store.put("k", b"old and longer")
    with store.stage() as staged:
        staged.write(b"new")
        store.adopt(staged, "k")
    assert store.get("k") == b"new"


def test_what_is_not_adopted_is_gone(store, tmp_path):
    def fail() -> None:
        with store.stage() as staged:
            staged.write(b"x")
            raise KeyError

    with store.stage() as staged:
        staged.write(b"x")
    with pytest.raises(KeyError):
        fail()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_is_staged_at_once_does_not_mix(store):
    with store.stage() as one, store.stage() as two:
        one.write(b"1")
        two.write(b"2")
        store.adopt(two, "two")
        store.adopt(one, "one")
    assert (store.get("one"), store.get("two")) == (b"1", b"2")


def test_ranges(store):
    store.put("k", b"0123456789")
    assert store.get_range("k", 2, 3) == b"234"
    assert store.get_range("k", 0, 10) == b"0123456789"
    assert store.get_range("k", 10, 0) == b""
    for start, length in ((8, 3), (11, 0), (-1, 2), (2, -1), (0, 10**12)):
        with pytest.raises(Invalid):
            store.get_range("k", start, length)


def test_missing_objects(store):
    store.put("a/b", b"x")
    for key in ("missing", "a", "a/c"):
        assert store.size(key) is None
        with pytest.raises(NotFound):
            store.get(key)
        with pytest.raises(NotFound):
            store.get_range(key, 0, 1)
        store.delete(key)


def test_delete(store):
    store.put("k", b"x")
    store.delete("k")
    assert store.size("k") is None
    assert store.put("k", b"y", create=True)


def test_list_goes_by_whole_segments(store):
    for key in ("a/b/1", "a/b/c/2", "a/bb/3", "ab/4"):
        store.put(key, b"")
    assert sorted(store.list("a/b")) == sorted(store.list("a/b/")) == ["a/b/1", "a/b/c/2"]
    assert sorted(store.list("a")) == ["a/b/1", "a/b/c/2", "a/bb/3"]
    assert list(store.list("none")) == []


def test_no_object_is_swept(store):
    store.put("a/b", b"1")
    assert store.sweep(time.time() + 3600) == 0
    assert store.get("a/b") == b"1"


@pytest.mark.parametrize("key", ["../up", "a/../../up", "a/./b", "a//b", "/a", "", "a#1"])
def test_keys_that_are_not_plain_are_refused(store, key):
    with pytest.raises(Invalid):
        store.put(key, b"x")
    with pytest.raises(Invalid), store.stage() as staged:
        store.adopt(staged, key)


# ── over real processes ──────────────────────────────────────────────────────────────────────────────────────────────────────

PUBLISH = """
import sys
from pathlib import Path
from modelyard.storage import Artefacts, FolderStore
root = Path(sys.argv[1])
print("ready", flush=True)
Artefacts(FolderStore(root / "store"), root / "cache").publish("p", root / "folder")
print("done", flush=True)
"""
LOCAL = """
import sys
from pathlib import Path
from modelyard.storage import Artefacts, FolderStore
root = Path(sys.argv[1])
print("ready", flush=True)
folder = Artefacts(FolderStore(root / "store"), root / "cache").local("p", sys.argv[2])
assert (folder / "a/0").read_bytes() == bytes(3 << 20)
print(folder)
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder/a").mkdir(parents=True)
    for number in range(12):
        (tmp_path / f"folder/a/{number}").write_bytes(bytes([number]) * (3 << 20))
    return tmp_path / "folder"


def test_a_publication_killed_at_any_moment_left_nothing_or_all(folder, tmp_path):
    artefacts = Artefacts(FolderStore(tmp_path / "store"), tmp_path / "cache")
    outcomes = []
    for pause in (0.0, 0.02, 0.04, 0.08, 0.12, 0.2):
        with start(PUBLISH, str(tmp_path)) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause)
            process.kill()
        manifests = [path for path in tmp_path.glob("store/projects/p/artefacts/*") if "#" not in path.name]
        outcomes.append(len(manifests))
        for path in manifests:
            assert artefacts.local("p", path.stem)
            path.unlink()
    manifest = artefacts.publish("p", folder)
    assert (artefacts.local("p", manifest.hash) / "a/11").read_bytes() == bytes([11]) * (3 << 20)
    assert 0 in outcomes


def test_many_processes_want_one_artefact_and_one_copy_serves_all(folder, tmp_path):
    manifest = Artefacts(FolderStore(tmp_path / "store"), tmp_path / "cache").publish("p", folder)
    wanting = [start(LOCAL, str(tmp_path), manifest.hash) for _ in range(4)]
    answers = {process.communicate(timeout=60)[0].split()[-1] for process in wanting}
    assert [process.returncode for process in wanting] == [0] * 4
    assert answers == {str(tmp_path / "cache/p" / manifest.hash)}
    assert not list((tmp_path / "cache/p").glob("*.part"))


def test_a_fetch_killed_on_the_way_is_repeated(folder, tmp_path):
    artefacts = Artefacts(FolderStore(tmp_path / "store"), tmp_path / "cache")
    manifest = artefacts.publish("p", folder)
    for pause in (0.01, 0.02, 0.04, 0.08):
        with start(LOCAL, str(tmp_path), manifest.hash) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(pause)
            process.kill()
    assert (artefacts.local("p", manifest.hash) / "a/0").read_bytes() == bytes(3 << 20)
    assert artefacts.local("p", manifest.hash) == tmp_path / "cache/p" / manifest.hash
