from __future__ import annotations

import os
from pathlib import Path

from modelyard.storage.removal import remove


def test_a_folder_of_any_depth_goes(tmp_path: Path) -> None:
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


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
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


def test_what_may_not_be_read_goes_too_and_taken_names_are_passed_over(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "removed-0").mkdir(parents=True)
    (top / "removed-1").write_text("")
    (top / "a" / "b" / "c").mkdir(parents=True)
    (top / "a" / "b").chmod(0)
    (top / "a").chmod(0o500)
    remove(top)
    assert not top.exists()


def test_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    remove(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    remove(tmp_path / "file")
    assert (tmp_path / "file").exists()
