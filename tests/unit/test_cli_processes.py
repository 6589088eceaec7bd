from __future__ import annotations

from pathlib import Path

from modelyard.cli.processes import welcome


def test_up_says_where_it_is_and_what_to_do_next(tmp_path: Path) -> None:
    text = welcome("http://127.0.0.1:8080", tmp_path / "my yard", tmp_path / "my yard" / "profile.json")
    assert text.startswith("Modelyard answers at http://127.0.0.1:8080\n")
    assert f"export MODELYARD_DATA='{tmp_path / 'my yard'}'" in text


def test_the_usual_folder_needs_no_telling() -> None:
    usual = Path("~/.modelyard").expanduser().resolve()
    assert "export" not in welcome("http://127.0.0.1:8080", usual, usual / "profile.json")
