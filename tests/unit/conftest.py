"""What every unit test may rely on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from jobs_office import GATE, Office


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables fit the terminal; a test's has no width but the one it sets."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Torch computes in two threads: one, as in other tests, would not tell whether their number is put back."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """A project with a scheduler over threads; tests of jobs that need another kind of office make their own."""
    GATE.clear()
    office = Office(tmp_path)
    yield office
    office.close()
