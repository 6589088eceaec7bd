from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.client import transfer
from modelyard.errors import Invalid
from modelyard.storage import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "source" / "seven").mkdir(parents=True)
    (tmp_path / "source" / "seven" / "a.png").write_bytes(b"a")
    (tmp_path / "source" / "rows.csv").write_bytes(b"x\n1\n")
    return tmp_path / "source"


def test_a_file_goes_under_its_own_name(folder: Path) -> None:
    assert transfer.files_of(folder / "rows.csv") == {"rows.csv": folder / "rows.csv"}


def test_a_folder_goes_by_relative_path_without_what_is_hidden(folder: Path) -> None:
    for name in (".DS_Store", "__pycache__/model.pyc", "seven/.hidden"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert list(transfer.files_of(folder)) == ["rows.csv", "seven/a.png"]


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "rows.csv").rename(tmp_path / "elsewhere.csv")
    (folder / "rows.csv").symlink_to(tmp_path / "elsewhere.csv")
    assert transfer.manifest_of(transfer.files_of(folder)).files["rows.csv"].size == 4


def test_nothing_to_upload_is_said(folder: Path) -> None:
    with pytest.raises(Invalid, match="no file or folder"):
        transfer.files_of(folder / "missing")
    (folder / "empty").mkdir()
    with pytest.raises(Invalid, match="no files"):
        transfer.files_of(folder / "empty")


def test_the_hash_is_the_store_s(folder: Path) -> None:
    assert transfer.manifest_of(transfer.files_of(folder)).hash == Manifest.of_folder(folder).hash


def test_a_large_file_is_cut_as_the_store_cuts_it(folder: Path) -> None:
    size = (64 << 20) + 5
    with (folder / "large").open("wb") as file:
        file.truncate(size)
    manifest = transfer.manifest_of({"large": folder / "large"})
    assert manifest == Manifest.of_chunks({"large": size}, [("large", chunk) for chunk in manifest.files["large"].chunks])
    first, second = transfer.chunks_of(manifest)
    assert (first.start, first.length, second.start, second.length) == (0, 64 << 20, 64 << 20, 5)
    assert not first.whole


def test_an_empty_file_is_one_empty_chunk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (chunk,) = transfer.chunks_of(transfer.manifest_of({"empty": tmp_path / "empty"}))
    assert (chunk.length, chunk.whole) == (0, True)


def test_pieces_are_small_and_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * (3 << 12)
    (tmp_path / "f").write_bytes(content)
    got = list(transfer.pieces(tmp_path / "f", 10, (2 << 20) + 1))
    assert [len(piece) for piece in got] == [1 << 20, 1 << 20, 1]
    assert b"".join(got) == content[10 : 11 + (2 << 20)]
