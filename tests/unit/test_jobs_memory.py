"""How much memory processes hold, measured on this one."""

import mmap
import os
from pathlib import Path

import pytest

from modelyard.jobs import memory

SIZE = 48 << 20


def held(enough: int = 0) -> int:
    return memory.held([os.getpid()], (), enough)


@pytest.mark.parametrize("enough", [0, 1 << 60])
def test_what_a_process_takes_is_seen(enough: int) -> None:
    before = held(enough)
    block = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    assert held(enough) - before < SIZE // 2  # not taken yet
    for at in range(0, SIZE, mmap.PAGESIZE):
        block[at] = 1
    assert SIZE * 0.9 < held(enough) - before < SIZE * 1.5
    block.close()


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_in_memory_counts_once_whether_it_is_mapped_or_not(mapped: bool) -> None:
    before = held()
    fd = os.memfd_create("block")
    os.posix_fallocate(fd, 0, SIZE)
    seen = mmap.mmap(fd, SIZE) if mapped else None
    if seen is not None:
        assert seen.find(b"x") == -1
    assert SIZE * 0.9 < held() - before < SIZE * 1.5
    if seen is not None:
        seen.close()
    os.close(fd)


def test_what_is_mapped_from_a_file_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * SIZE)
    before = held()
    with path.open("rb") as file, mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ) as block:
        assert block.find(b"y") == -1
        assert held() - before < SIZE // 2


def test_files_and_empty_files_in_memory_count(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = os.statvfs_result((4096, 4096, 1000, 900, 900, 5000, 4000, 4000, 0, 255))
    monkeypatch.setattr(memory.os, "statvfs", lambda _: facts)
    assert memory.held([], ("/anywhere",), 1 << 60) >= 100 * 4096 + 1000 * 1024


def test_a_process_that_is_gone_holds_nothing() -> None:
    assert memory.held([2**22 + 1], (), 0) == 0


def test_outside_of_a_sandbox_no_folder_is_private() -> None:
    assert memory.private_folders() == ()


def test_private_folders_are_cleared_but_for_what_is_mounted_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/b/file", "a/mounted/inner", "c/.hidden", "link"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x") if name != "link" else (tmp_path / name).symlink_to(tmp_path / "a")
    mounted = tmp_path / "a" / "mounted"
    monkeypatch.setattr("os.path.ismount", lambda path: str(path) == str(mounted))
    assert memory.clear([str(tmp_path)])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "a",
        "a/mounted",
        "a/mounted/inner",
    ]
    assert not memory.clear([str(tmp_path / "gone")])


def test_what_cannot_be_removed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()

    def refuse(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("os.unlink", refuse)
    assert not memory.clear([str(tmp_path)])
