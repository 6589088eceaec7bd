"""Published whole or not at all, verified at every use, invisible to every other project."""

import hashlib
import os
import stat
import threading

import pytest

from modelyard.errors import Damaged, Invalid, NotFound, TooLarge, Unavailable
from modelyard.storage import CHUNK, Artefacts, FileEntry, Manifest, artefacts
from modelyard.testing import MemoryStore

FILES = {"a": b"", "sub/b": b"hello", "sub/deep/c": bytes(range(256)) * 100}


def digest(data):
    return hashlib.sha256(data).hexdigest()


class DyingStore(MemoryStore):
    """Dies, as by kill -9, at its n-th write: before it or after it."""

    def __init__(self, objects, at, after):
        super().__init__()
        self.objects, self.left, self.after = objects, at, after

    def put(self, key, data, *, create=False):
        self.left -= 1
        if self.left < 0 and not self.after:
            raise KeyboardInterrupt
        done = super().put(key, data, create=create)
        if self.left < 0:
            raise KeyboardInterrupt
        return done


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def yard(store, tmp_path):
    return Artefacts(store, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    for path, data in FILES.items():
        (tmp_path / "folder" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / path).write_bytes(data)
    return tmp_path / "folder"


def blob(data, project="p"):
    return f"projects/{project}/blobs/{digest(data)[:2]}/{digest(data)}"


def test_what_is_published_comes_back(yard, folder):
    manifest = yard.publish("p", folder)
    assert manifest == Manifest.of_folder(folder) == yard.manifest("p", manifest.hash)
    local = yard.local("p", manifest.hash)
    assert {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()} == FILES


def test_the_layout_of_the_store_is_the_documented_one(yard, folder, store):
    manifest = yard.publish("p", folder)
    blobs = {blob(data): data for data in FILES.values()}
    assert store.objects == {**blobs, f"projects/p/artefacts/{manifest.hash}.json": manifest.to_bytes()}


def test_publishing_again_writes_nothing(yard, folder, store, tmp_path):
    manifest = yard.publish("p", folder)
    again = Artefacts(DyingStore(store.objects, 1, after=False), tmp_path / "cache")  # the manifest's conditional create alone
    assert again.publish("p", folder) == manifest


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_killed_at_any_write_there_is_no_artefact_or_a_whole_one(folder, tmp_path, at, after):
    objects = {}
    with pytest.raises(KeyboardInterrupt):
        Artefacts(DyingStore(objects, at, after), tmp_path / "cache").publish("p", folder)
    alive = MemoryStore()
    alive.objects = objects
    yard, expected = Artefacts(alive, tmp_path / "cache"), Manifest.of_folder(folder)
    if at == 3 and after:
        assert yard.local("p", expected.hash)
    else:
        with pytest.raises(NotFound):
            yard.manifest("p", expected.hash)
    assert yard.local("p", yard.publish("p", folder).hash)


def test_a_projects_things_do_not_exist_for_another(yard, folder):
    manifest = yard.publish("p", folder)
    assert not yard.has_blob("q", digest(b"hello"))
    for refused in (yard.manifest, yard.local):
        with pytest.raises(NotFound) as caught:
            refused("q", manifest.hash)
        assert "'p'" not in caught.value.message
    with pytest.raises(Invalid, match="missing"):
        yard.publish_manifest("q", manifest)


@pytest.mark.parametrize("project", ["", "..", "a/b", "a\0", "../p", "p" * 129, ".", "-p", "p/blobs"])
def test_a_project_is_a_word(yard, folder, project):
    for refused in (
        lambda: yard.publish(project, folder),
        lambda: yard.local(project, "0" * 64),
        lambda: yard.has_blob(project, "0" * 64),
    ):
        with pytest.raises(Invalid):
            refused()


@pytest.mark.parametrize("digest", ["x", "../../../etc/passwd", "A" * 64])
def test_a_hash_is_a_hash(yard, digest):
    for refused in (yard.manifest, yard.local, yard.has_blob):
        with pytest.raises(Invalid):
            refused("p", digest)


def test_a_blob_must_be_what_it_is_called(yard):
    yard.put_blob("p", digest(b"x"), b"x")
    assert yard.has_blob("p", digest(b"x"))
    with pytest.raises(Invalid, match=digest(b"y")):
        yard.put_blob("p", digest(b"x"), b"y")
    with pytest.raises(TooLarge):
        yard.put_blob("p", digest(b"x"), bytes(CHUNK + 1))


def test_what_was_stored_before_the_store_failed_stays_and_the_same_again_completes_it(yard, store, monkeypatch):
    blobs = {digest(data): data for data in (b"%d" % n for n in range(200))}
    real, left = store.put, [100]

    def full(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            raise Unavailable("The object store failed: No space left on device.")
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(store, "put", full)
        with pytest.raises(Unavailable, match="No space left"):
            yard.put_blobs("p", blobs.items())
    assert 0 < len(store.objects) <= 100
    assert yard.put_blobs("p", blobs.items()) == 200
    assert all(store.objects[blob(data)] == data for data in blobs.values())


def test_a_staged_blob_must_be_what_it_is_called(yard, store):
    with yard.stage() as staged:
        staged.write(b"y")
        with pytest.raises(Invalid, match=digest(b"x")):
            yard.adopt_blob("p", digest(b"x"), staged)
        with pytest.raises(Invalid):
            yard.adopt_blob("p", "../" + "0" * 61, staged)
        assert not store.objects
        yard.adopt_blob("p", digest(b"y"), staged)
    assert store.objects == {blob(b"y"): b"y"}


def test_a_manifest_needs_its_blobs_whole(yard, store):
    manifest = Manifest({"a": FileEntry.of(1, [digest(b"x")]), "b": FileEntry.of(1, [digest(b"y")])})
    yard.put_blob("p", digest(b"x"), b"x")
    with pytest.raises(Invalid, match=digest(b"y")) as caught:
        yard.publish_manifest("p", manifest)
    assert digest(b"x") not in caught.value.message
    store.put(blob(b"y"), b"longer")
    with pytest.raises(Invalid, match="another size"):
        yard.publish_manifest("p", manifest)
    yard.put_blob("p", digest(b"y"), b"y")
    yard.publish_manifest("p", manifest)
    assert (yard.local("p", manifest.hash) / "b").read_bytes() == b"y"


def test_a_manifest_that_lies_about_a_size_is_refused(yard):
    yard.put_blob("p", digest(b"x"), b"x")
    with pytest.raises(Invalid, match="another size"):
        yard.publish_manifest("p", Manifest({"a": FileEntry.of(2, [digest(b"x")])}))


def test_the_local_copy_is_read_only(yard, folder):
    local = yard.local("p", yard.publish("p", folder).hash)
    for path in (local, *local.rglob("*")):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222


@pytest.fixture
def local(yard, folder):
    copy = yard.local("p", yard.publish("p", folder).hash)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o700)
    return copy


def _flip(local):
    (local / "sub/b").write_bytes(b"hellO")


def _extend(local):
    (local / "sub/b").write_bytes(b"hello\0")


def _delete(local):
    (local / "a").unlink()


def _add(local):
    (local / "sub/model.py").write_text("import os")


def _link(local):
    (local / "sub/b").unlink()
    (local / "sub/b").symlink_to("/etc/hostname")


def _hard_link(local):
    os.link(local / "sub/b", local.parent / "backdoor")


def _replace(local):
    artefacts.remove(local)
    local.symlink_to("/etc")


def _file(local):
    artefacts.remove(local)
    local.write_bytes(b"")


@pytest.mark.parametrize("harm", [_flip, _extend, _delete, _add, _link, _hard_link, _replace, _file])
def test_a_bad_local_copy_is_replaced_from_the_store(yard, local, harm):
    harm(local)
    assert yard.local("p", local.name) == local
    assert not local.is_symlink()
    assert {path.relative_to(local).as_posix(): path.read_bytes() for path in local.rglob("*") if path.is_file()} == FILES
    assert [path.name for path in local.parent.iterdir() if path.name.endswith(".part")] == []


def test_a_sound_local_copy_needs_no_blobs(yard, local, store):
    for key in list(store.list("projects/p/blobs")):
        store.delete(key)
    assert yard.local("p", local.name) == local


@pytest.mark.parametrize(
    "harm", [lambda data: data[:-1] + b"O", lambda data: data + b"\0", lambda _: None], ids=["flip", "extend", "delete"]
)
def test_a_bad_store_is_refused_naming_the_file(yard, folder, store, harm):
    manifest = yard.publish("p", folder)
    key = blob(b"hello")
    bad = harm(store.get(key))
    store.delete(key) if bad is None else store.put(key, bad)
    with pytest.raises(Damaged, match=r"sub/b"):
        yard.local("p", manifest.hash)
    with pytest.raises(Damaged, match=r"sub/b"):
        yard.read_range("p", manifest.hash, "sub/b", 1, 2)
    assert yard.read_range("p", manifest.hash, "sub/deep/c", 0, 3) == b"\0\1\2"
    yard.publish("p", folder)
    assert yard.local("p", manifest.hash)


def test_a_bad_store_leaves_no_copy_behind(yard, local, store):
    _flip(local)
    store.put(blob(b"hello"), b"jello")
    with pytest.raises(Damaged):
        yard.local("p", local.name)
    assert [path.name for path in local.parent.iterdir() if path.name.endswith(".part")] == []


def test_a_bad_manifest_is_refused_and_healed_by_publishing_again(yard, folder, store):
    manifest = yard.publish("p", folder)
    store.put(f"projects/p/artefacts/{manifest.hash}.json", b"")
    with pytest.raises(Damaged, match="manifest"):
        yard.local("p", manifest.hash)
    yard.publish("p", folder)
    assert yard.manifest("p", manifest.hash) == manifest


def test_ranges_and_streams(yard, folder):
    content, hash_ = FILES["sub/deep/c"], yard.publish("p", folder).hash
    assert yard.read_range("p", hash_, "sub/deep/c", 100, 1000) == content[100:1100]
    assert b"".join(yard.stream("p", hash_, "sub/deep/c")) == content
    assert b"".join(yard.stream("p", hash_, "sub/deep/c", 5)) == content[5:]
    assert b"".join(yard.stream("p", hash_, "a")) == b""
    with pytest.raises(NotFound, match="nope"):
        yard.stream("p", hash_, "nope")
    for start, end in ((-1, 2), (3, 2), (0, len(content) + 1)):
        with pytest.raises(Invalid):
            yard.stream("p", hash_, "sub/deep/c", start, end)


def test_a_file_of_several_chunks_reads_across_their_borders(yard, tmp_path, store):
    (tmp_path / "big").mkdir()
    with (tmp_path / "big/file").open("wb") as file:
        file.truncate(CHUNK + (20 << 20))
        for at, text in ((CHUNK - 3, b"border"), (CHUNK + (9 << 20), b"later")):
            file.seek(at)
            file.write(text)
    hash_ = yard.publish("p", tmp_path / "big").hash
    assert yard.read_range("p", hash_, "file", CHUNK - 3, 6) == b"border"
    assert yard.read_range("p", hash_, "file", CHUNK + (9 << 20) - 1, 7) == b"\0later\0"
    assert max(map(len, yard.stream("p", hash_, "file"))) <= 8 << 20
    assert (yard.local("p", hash_) / "file").stat().st_size == CHUNK + (20 << 20)
    second = next(key for key in store.list("projects/p/blobs") if store.size(key) == 20 << 20)
    store.put(second, store.get(second)[:-1] + b"\1")
    with pytest.raises(Damaged, match=f"at byte {CHUNK}"):
        next(yard.stream("p", hash_, "file", CHUNK, CHUNK + 1))
    assert next(yard.stream("p", hash_, "file", 0, 1)) == b"\0"


def test_threads_that_want_one_artefact_share_one_copy(yard, folder):
    hash_, found = yard.publish("p", folder).hash, []
    threads = [threading.Thread(target=lambda: found.append(yard.local("p", hash_))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_a_cache_that_cannot_be_written_is_our_fault_and_names_no_folder(yard, folder, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path))

    hash_ = yard.publish("p", folder).hash
    monkeypatch.setattr(artefacts.transfer, "_write", full)
    with pytest.raises(Unavailable, match="No space left") as caught:
        yard.local("p", hash_)
    assert str(tmp_path) not in caught.value.message


def test_a_folder_that_is_written_to_meanwhile_is_refused(yard, folder, store, monkeypatch):
    real = artefacts.transfer.store_blob

    def grow(*arguments):
        (folder / "sub/deep/c").write_bytes(b"grown")
        real(*arguments)

    monkeypatch.setattr(artefacts.transfer, "store_blob", grow)
    with pytest.raises(Invalid, match="changed"):
        yard.publish("p", folder)
    assert not list(store.list("projects/p/artefacts"))


def test_within_guards_the_way_to_the_folder(yard, folder, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job/out").symlink_to(tmp_path)
    with pytest.raises(Invalid):
        yard.publish("p", tmp_path / "job/out/folder", within=tmp_path / "job")
