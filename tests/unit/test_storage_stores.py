"""What is particular to the folder store; what every store does is in tests/contracts/test_stores.py."""

import os
import resource
import stat
import time
from pathlib import Path

import pytest

from modelyard.errors import Invalid, Unavailable
from modelyard.storage import FolderStore, open_store, stores


def test_a_store_opens_by_its_url(tmp_path: Path):
    store = open_store((tmp_path / "a store").as_uri())
    assert store.put("k/ey", b"x")
    assert (tmp_path / "a store/k/ey").read_bytes() == b"x"


@pytest.mark.parametrize("url", ["s3://bucket", "file://elsewhere/folder", "relative/folder", "file:relative", "", "memory://"])
def test_what_cannot_be_opened_says_so(url):
    with pytest.raises(Invalid, match="file:///"):
        open_store(url)


def test_what_is_stored_is_private(tmp_path: Path):
    FolderStore(tmp_path / "store").put("a/b", b"x")
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "store/a/b").stat().st_mode) == 0o600


def test_bytes_are_on_disk_before_the_name_and_the_name_before_put_returns(tmp_path: Path, monkeypatch):
    store, events = FolderStore(tmp_path), []
    fsync, name = os.fsync, stores._name

    def spy_fsync(fd):
        events.append(str(Path(f"/proc/self/fd/{fd}").readlink()).partition("#")[0])
        fsync(fd)

    def spy_name(staged, path, create):
        events.append("named")
        return name(staged, path, create)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(stores, "_name", spy_name)
    store.put("a/b/c", b"x", create=True)
    root = str(tmp_path)
    assert events == [f"{root}/staged", root, f"{root}/a", "named", f"{root}/a/b"]


def test_what_was_staged_is_on_disk_before_its_name(tmp_path: Path, monkeypatch):
    store, events = FolderStore(tmp_path), []
    fsync, replace = os.fsync, Path.replace

    def spy_fsync(fd):
        events.append(Path(f"/proc/self/fd/{fd}").readlink().name.partition("#")[0])
        fsync(fd)

    def spy_replace(self, target):
        events.append(f"named {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "replace", spy_replace)
    store.put("a/first", b"")
    del events[:]
    with store.stage() as staged:
        staged.write(b"x")
        store.adopt(staged, "a/b")
    assert events == ["staged", "named b", "a"]
    assert stat.S_IMODE((tmp_path / "a/b").stat().st_mode) == 0o600


def test_what_a_killed_put_left_is_not_seen_and_not_in_the_way(tmp_path: Path, monkeypatch):
    store = FolderStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_name", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            store.put("a/b", b"half")
    assert [path.name.partition("#")[0] for path in tmp_path.iterdir() if path.is_file()] == ["staged"]
    assert list((tmp_path / "a").iterdir()) == []  # all below a prefix can be dropped, and nothing of it is left
    assert (list(store.list("a")), store.size("a/b")) == ([], None)
    assert store.put("a/b", b"whole", create=True)
    assert (list(store.list("a")), store.get("a/b")) == (["a/b"], b"whole")


def leave(root: Path, *names: str, age: float) -> None:
    """Files, and folders where the name ends with '/', of that age, with the folders above them."""
    for name in names:
        path = root / name
        path.mkdir(parents=True) if name.endswith("/") else (path.parent.mkdir(exist_ok=True), path.write_bytes(b"half"))
    for name in names:
        for path in (root / name, *(root / name).relative_to(root).parents):
            os.utime(root / path, (time.time() - age,) * 2)


def test_what_killed_writers_left_is_swept_once_it_is_old(tmp_path: Path):
    store = FolderStore(tmp_path)
    store.put("kept/b", b"whole")
    leave(tmp_path, "staged#12", "kept/b#34", "checkpoints/job/3/", age=100)
    os.utime(tmp_path / "kept/b", (0, 0))  # an object stays, however old it is
    assert store.sweep(time.time() - 200) == 0
    assert store.sweep(time.time() - 50) == 3
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "checkpoints",
        "checkpoints/job",  # what was in it has just gone: it goes in its time
        "kept",
        "kept/b",
    ]
    assert store.get("kept/b") == b"whole"


def test_an_upload_that_is_under_way_is_not_swept(tmp_path: Path):
    store = FolderStore(tmp_path)
    with store.stage() as staged:
        staged.write(b"one")
        leave(tmp_path, "staged#1", age=100)
        assert store.sweep(time.time() - 50) == 1
        store.adopt(staged, "a/b")
    assert store.get("a/b") == b"one"


@pytest.mark.parametrize("verb", ["put", "adopt"])
def test_a_folder_that_is_swept_just_before_it_is_written_to_is_made_again(verb: str, tmp_path: Path, monkeypatch):
    store, make, taken = FolderStore(tmp_path), FolderStore._make_folder, []

    def then_swept(self, folder):
        make(self, folder)
        if folder == tmp_path / "a" and not taken:
            folder.rmdir()
            taken.append(folder)

    monkeypatch.setattr(FolderStore, "_make_folder", then_swept)
    if verb == "put":
        store.put("a/b", b"1")
    else:
        with store.stage() as staged:
            staged.write(b"1")
            store.adopt(staged, "a/b")
    assert (store.get("a/b"), len(taken)) == (b"1", 1)


def test_folders_that_vanish_are_made_again(tmp_path: Path):
    store = FolderStore(tmp_path)
    store.put("a/b", b"1")
    (tmp_path / "a/b").unlink()
    (tmp_path / "a").rmdir()
    assert store.put("a/b", b"2", create=True)


def test_a_full_disk_is_our_fault_and_names_no_folder(tmp_path: Path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path))

    store = FolderStore(tmp_path)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Unavailable, match="No space left") as caught:
        store.put("a/b", b"x")
    assert str(tmp_path) not in caught.value.message
    assert not list(tmp_path.iterdir())


def stage_and_adopt(store: FolderStore, data: bytes) -> None:
    with store.stage() as staged:
        staged.write(data)
        store.adopt(staged, "a/key")


@pytest.mark.parametrize("size", [100, 1 << 20])
def test_what_does_not_fit_while_it_is_staged_is_told_once(size: int, tmp_path: Path):
    """Small pieces are found too many only when they are flushed, and once more when the file is closed."""
    store, (soft, hard) = FolderStore(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
    try:
        with pytest.raises(Unavailable, match="The object store failed"):
            stage_and_adopt(store, bytes(size))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("staged*"))
