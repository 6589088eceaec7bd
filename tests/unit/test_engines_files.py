from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.engines.files import inside
from modelyard.errors import Invalid, Unsafe


def test_a_plain_file_in_a_folder_of_the_artefact(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("")
    assert inside(tmp_path, "a/b") == tmp_path / "a" / "b"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../../x", "/etc/passwd", "a\\b", "a\0b"])
def test_ways_out_are_unsafe(tmp_path: Path, name: str) -> None:
    with pytest.raises(Unsafe):
        inside(tmp_path, name)


def test_links_on_the_way_are_unsafe(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(Unsafe, match="is a link"):
        inside(tmp_path, "link/file")


def test_what_is_missing_or_a_folder_is_invalid(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("nothing", "folder"):
        with pytest.raises(Invalid, match=f"no file '{name}'"):
            inside(tmp_path, name)
