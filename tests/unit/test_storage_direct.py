"""Files written past the page cache are what was written, on every kind of file system, and full disks are told."""

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.storage import direct
from modelyard.storage.direct import DirectFile

BLOCK = direct._BLOCK


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path, tmp_path_factory):
    if request.param == "disk":
        yield tmp_path
        return
    path = Path("/dev/shm") / f"direct-{os.getpid()}-{tmp_path.name}"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


@pytest.mark.parametrize("sizes", [(), (0,), (1,), (BLOCK,), (BLOCK - 1, 2), (3 * BLOCK + 5, BLOCK, 7), (511, 513, BLOCK)])
def test_what_is_written_is_in_the_file(folder, sizes):
    pieces = [os.urandom(size) for size in sizes]
    file = DirectFile(folder / "f")
    for piece in pieces:
        assert file.write(piece) == len(piece)
    file.flush()
    os.fsync(file.fileno())
    assert (folder / "f").read_bytes() == b"".join(pieces)
    file.close()
    file.close()
    assert (folder / "f").read_bytes() == b"".join(pieces)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=300), st.none()), max_size=20))
def test_flushing_in_between_changes_nothing(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("d") / "f"
    with DirectFile(path) as file:
        for step in steps:
            file.flush() if step is None else file.write(step)
    assert path.read_bytes() == b"".join(step for step in steps if step)


def test_a_file_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        DirectFile(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_a_failing_write_is_told_once(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = DirectFile(tmp_path / "f")
    resource.setrlimit(resource.RLIMIT_FSIZE, (BLOCK, hard))
    try:
        with pytest.raises(OSError, match="large"):
            file.write(bytes(3 * BLOCK))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    file.close()
    assert (tmp_path / "f").stat().st_size == BLOCK
