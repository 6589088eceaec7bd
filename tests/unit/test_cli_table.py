from __future__ import annotations

import re

import pytest
import typer

from modelyard.cli import table as module
from modelyard.cli.table import cell, table


def unstyled(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_columns_are_aligned_numbers_right() -> None:
    text = unstyled(table(("name", "calls", "note"), [("digits", 12, None), ("a", 1234, "x")]))
    assert text.splitlines() == ["NAME    CALLS  NOTE", "digits     12", "a        1234  x"]
    assert table(("name",), [], "nothing") == "nothing"


def test_states_are_coloured_and_nothing_else_is() -> None:
    text = table(("name", "state"), [("ready-to-go", "ready")])
    assert typer.style("ready", fg="green") in text
    assert "ready-to-go" in text


ROWS = [("j-0123456789", "train", 7, "a note of several words that goes on and on"), ("j-2", "optimise", 1234, None)]
HEADER = ("job", "kind", "calls", "note")


def test_a_table_that_fits_is_left_alone() -> None:
    assert table(HEADER, ROWS, spare=("kind",), width=200) == table(HEADER, ROWS)


@pytest.mark.parametrize(
    ("width", "first"),
    [
        (60, "j-0123456789  train         7  a note of several words that…"),
        (52, "j-0123456789  train         7  a note of several wo…"),
        (50, "j-0123456789      7  a note of several words that…"),
        (36, "j-0123456789      7  a note of seve…"),
    ],
)
def test_the_note_gives_way_first_then_spare_columns_then_long_text(width: int, first: str) -> None:
    lines = unstyled(table(HEADER, ROWS, spare=("kind",), width=width)).splitlines()
    assert lines[1] == first
    assert max(map(len, lines)) <= width
    assert "1234" in lines[2]


def test_a_table_is_as_wide_as_the_terminal_and_whole_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert module.terminal_width() is None
    monkeypatch.setenv("COLUMNS", "47")
    assert module.terminal_width() == 47


def test_times_are_told_to_the_minute_on_one_line() -> None:
    assert cell("2026-11-23T22:05:11.123456+00:00") == "2026-11-23 22:05"
    assert cell("since 2026-11-23T22:05:11Z,\nagain") == "since 2026-11-23 22:05, again"
    assert cell(0.123456) == "0.1235"
    assert cell(None) == ""
