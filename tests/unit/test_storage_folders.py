"""Reading what others filled: nothing but plain files, however they are disguised or swapped."""

import os
import socket
import stat
from pathlib import Path

import pytest

from modelyard.errors import Invalid
from modelyard.storage import Manifest
from modelyard.storage.folders import OpenFolder, remove, seal


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "run/out"
    (target / "sub").mkdir(parents=True)
    (target / "sub/file").write_bytes(b"0123456789")
    (tmp_path / "secret").write_bytes(b"0123456789")
    return target


def test_a_plain_folder_lists_and_reads(folder):
    with OpenFolder(folder) as opened:
        assert opened.files == {"sub/file": 10}
        assert opened.read("sub/file", 2, 3) == b"234"


@pytest.mark.parametrize("name", ["link", "sub/link"])
def test_symbolic_links_are_refused(folder, name):
    (folder / name).symlink_to(folder.parent.parent / "secret")
    with pytest.raises(Invalid, match="symbolic link"):
        OpenFolder(folder)


def test_a_link_to_a_folder_is_refused(folder):
    (folder / "away").symlink_to("/etc")
    with pytest.raises(Invalid, match="symbolic link"):
        OpenFolder(folder)


def test_hard_links_are_refused(folder):
    (folder / "hard").hardlink_to(folder.parent.parent / "secret")
    with pytest.raises(Invalid, match="hard link"):
        OpenFolder(folder)


def test_pipes_and_sockets_are_refused_without_waiting(folder, monkeypatch):
    os.mkfifo(folder / "pipe")
    with pytest.raises(Invalid, match="neither"):
        OpenFolder(folder)
    (folder / "pipe").unlink()
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(Invalid, match="neither"):
            OpenFolder(folder)


@pytest.mark.parametrize("name", ["missing", "sub/file"])
def test_what_is_no_folder_is_refused(folder, name):
    with pytest.raises(Invalid, match="not a plain folder"):
        OpenFolder(folder / name)


def test_a_folder_that_is_a_link_is_refused(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    with pytest.raises(Invalid, match="not a plain folder"):
        OpenFolder(tmp_path / "alias")


def test_no_component_below_a_trusted_folder_may_be_a_link(folder, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job/a").symlink_to(tmp_path / "run")
    assert OpenFolder(tmp_path / "run/out", tmp_path / "run").files
    for sneaky in (tmp_path / "job/a/out", tmp_path / "job/../run/out", tmp_path / "secret"):
        with pytest.raises(Invalid, match="not a plain folder"):
            OpenFolder(sneaky, tmp_path / "job")


@pytest.mark.parametrize("swap", ["file", "folder", "pipe", "hard"])
def test_what_is_swapped_after_the_look_is_refused(folder, tmp_path, swap):
    with OpenFolder(folder) as opened:
        (folder / "sub/file").unlink()
        if swap == "file":
            (folder / "sub/file").symlink_to(tmp_path / "secret")
        elif swap == "folder":
            (folder / "sub").rmdir()
            (tmp_path / "other").mkdir()
            (tmp_path / "other/file").write_bytes(b"0123456789")
            (folder / "sub").symlink_to(tmp_path / "other")
        elif swap == "pipe":
            os.mkfifo(folder / "sub/file")
        else:
            (folder / "sub/file").hardlink_to(tmp_path / "secret")
        with pytest.raises(Invalid):
            opened.read("sub/file", 0, 10)


@pytest.mark.parametrize("content", [b"0123", b"0123456789more"])
def test_a_file_that_shrinks_or_grows_is_refused(folder, content):
    with OpenFolder(folder) as opened:
        (folder / "sub/file").write_bytes(content)
        with pytest.raises(Invalid, match="changed"):
            opened.digest("sub/file", 0, 10)


def test_names_that_are_not_utf8_are_refused_by_name(folder):
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).write_bytes(b"")
    with pytest.raises(Invalid, match="not UTF-8"):
        Manifest.of_folder(folder)


def test_no_descriptor_is_left_open(folder):
    before = len(list(Path("/proc/self/fd").iterdir()))
    with OpenFolder(folder) as opened:
        opened.digest("sub/file", 0, 10)
        (folder / "sub/file").unlink()
        with pytest.raises(Invalid):
            opened.read("sub/file", 0, 10)
    (folder / "link").symlink_to("x")
    with pytest.raises(Invalid):
        OpenFolder(folder)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_sealed_tree_is_read_only_and_can_be_removed(folder, tmp_path):
    seal(folder)
    assert stat.S_IMODE((folder / "sub/file").stat().st_mode) == 0o444
    assert stat.S_IMODE((folder / "sub").stat().st_mode) == stat.S_IMODE(folder.stat().st_mode) == 0o555
    remove(folder)
    assert not folder.exists()


def test_removing_a_link_leaves_what_it_points_to(folder, tmp_path):
    (tmp_path / "alias").symlink_to(folder)
    remove(tmp_path / "alias")
    remove(tmp_path / "missing")
    assert (folder / "sub/file").exists()
    assert not (tmp_path / "alias").is_symlink()


def test_a_folder_of_any_depth_goes(tmp_path):
    top = tmp_path / "top"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for number in range(3000):  # longer than a path may be, deeper than Python may call
        os.mkdir("d" * 10, dir_fd=here)
        inner = os.open("d" * 10, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
        if number % 100 == 0:
            os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    remove(top)
    assert not top.exists()


def test_links_are_removed_at_any_depth_and_not_followed(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("mine")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "link").symlink_to(kept)
    (top / "link").symlink_to(kept)
    (top / "a" / "b" / "up").symlink_to(tmp_path)
    os.mkfifo(top / "a" / "pipe")
    remove(top)
    assert not top.exists()
    assert (kept / "file").read_text() == "mine"


def test_what_may_not_be_read_goes_too_and_taken_names_are_passed_over(tmp_path):
    top = tmp_path / "top"
    (top / "removed-0").mkdir(parents=True)
    (top / "removed-1").write_text("")
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b").chmod(0)
    (top / "a").chmod(0o500)
    remove(top)
    assert not top.exists()
