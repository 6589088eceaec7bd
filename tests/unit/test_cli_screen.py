from __future__ import annotations

import io
import json

import pytest
from typer.exceptions import TyperException

from modelyard.cli import screen


def test_json_is_exactly_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say(True, {"name": "ä"}, "text")
    said = capsys.readouterr()
    assert json.loads(said.out) == {"name": "ä"}
    assert said.err == ""


def test_text_is_what_people_get(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say(False, {"name": "m"}, "text")
    screen.note("beside")
    assert capsys.readouterr() == ("text\n", "beside\n")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_read_as_people_read_them(count: int, text: str) -> None:
    assert screen.size(count) == text


def test_a_sparkline_goes_from_lowest_to_highest() -> None:
    assert screen.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert screen.sparkline([5, 5]) == "▁▁"
    assert screen.sparkline([]) == ""
    assert len(screen.sparkline(list(range(1000)), width=24)) == 24
    assert screen.sparkline([0, float("nan"), 7]) == "▁ █"
    assert screen.sparkline([float("nan")]) == ""


def test_a_version_reads_in_one_line() -> None:
    version = {"reference": "digits@1", "task": "image-classification", "artefact": "0123456789abcdef"}
    assert screen.describe(version) == "digits@1 · image-classification · 0123456789ab"


def test_json_has_no_number_that_is_none() -> None:
    body = {"scores": [[1.5, float("nan")], [float("inf"), -float("inf")]], "n": 1}
    assert json.loads(screen.dumps(body)) == {"scores": [[1.5, None], [None, None]], "n": 1}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A person at a terminal, whose answers are written into this."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    return terminal


@pytest.mark.parametrize(("answer", "goes_on"), [("y", True), ("n", False), ("", False)])
def test_what_is_lost_is_asked_for(answer: str, goes_on: bool, asked: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    asked.write(f"{answer}\n")
    asked.seek(0)
    if goes_on:
        screen.confirm("Delete", "deleted", "model 'm'", False)
    else:
        with pytest.raises(screen.Left, match=r"Nothing was deleted\.") as left:
            screen.confirm("Delete", "deleted", "model 'm'", False)
        assert left.value.exit_code == 1
    said = capsys.readouterr()
    assert "Delete model 'm'?" in said.err
    assert said.out == ""


def test_silence_is_no_consent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    with pytest.raises(TyperException, match="--yes"):
        screen.confirm("Delete", "deleted", "model 'm'", False)
    screen.confirm("Delete", "deleted", "model 'm'", True)
