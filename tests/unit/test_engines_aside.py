"""A process of its own: what it says last is the answer, what fails is none, and nobody waits for ever."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelyard.engines.aside import aside
from modelyard.kinds import Cancelled

SLEEPS = ["-n1", "-r1", "import time; time.sleep(30)"]


def test_a_process_that_fails_says_nothing_or_takes_too_long_answers_none(tmp_path: Path) -> None:
    (tmp_path / "said.json").write_text('{"a": [1]}')
    assert aside("json.tool", ["--compact", str(tmp_path / "said.json")], list, 9) == {"a": [1]}
    assert aside("json.tool", [str(tmp_path / "none.json")], list, 9) is None
    assert aside("this", [], list, 9) is None
    began = time.monotonic()
    assert aside("timeit", SLEEPS, list, 0.3) is None
    assert time.monotonic() - began < 10


def test_who_cancels_ends_it() -> None:
    def cancelled() -> None:
        raise Cancelled

    began = time.monotonic()
    with pytest.raises(Cancelled):
        aside("timeit", SLEEPS, cancelled, 60)
    assert time.monotonic() - began < 10
