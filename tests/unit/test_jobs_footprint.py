"""A work folder's size: files, folders and bytes on disk, whatever was done to hide them."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from modelyard.jobs.footprint import excess

BYTES = 1 << 20


def test_what_is_within_its_bounds_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(bytes(1000))
    assert excess(tmp_path, BYTES, 2) is None
    assert excess(tmp_path / "gone", BYTES, 0) is None


@pytest.mark.parametrize("where", ["x", "a/b/c/x"])
def test_bytes_are_counted_wherever_they_lie(tmp_path: Path, where: str) -> None:
    (tmp_path / where).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / where).write_bytes(os.urandom(BYTES + 1))
    assert excess(tmp_path, BYTES, 100) == "more than 1,048,576 bytes on disk"


def test_files_and_folders_are_counted(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"folder-{number}").mkdir()
        (tmp_path / f"folder-{number}" / "empty").touch()
    assert excess(tmp_path, BYTES, 10) is None
    assert excess(tmp_path, BYTES, 9) == "more than 9 files"


def test_holes_take_nothing_and_links_are_not_followed(tmp_path: Path) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(BYTES * 100)
    (tmp_path / "out").symlink_to("/usr")
    assert excess(tmp_path, BYTES, 2) is None


def test_a_closed_folder_is_opened(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "x").write_bytes(os.urandom(BYTES + 1))
    (tmp_path / "closed").chmod(0)
    if os.getuid():  # to root none is closed
        assert excess(tmp_path, BYTES, 100, opens=False) == "a folder that cannot be looked into (Permission denied)"
    assert excess(tmp_path, BYTES, 100) == "more than 1,048,576 bytes on disk"


def test_folders_too_deep_to_look_into_are_too_much(tmp_path: Path) -> None:
    above = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(25):  # 25 names of 200 make a path longer than the kernel takes
            os.mkdir("d" * 200, dir_fd=above)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=above)
            os.close(above)
            above = below
        said = {excess(tmp_path, BYTES, 100, opens=opens) for opens in (True, False)}
    finally:
        os.close(above)
    assert said == {"a folder that cannot be looked into (File name too long)"}


def test_what_is_not_the_folders_fault_is_not_held_against_a_replica(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        said = excess(tmp_path, BYTES, 100, opens=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert said is None
