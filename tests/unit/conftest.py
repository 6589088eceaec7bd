"""What every unit test may rely on."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables fit the terminal; a test's has no width but the one it sets."""
    monkeypatch.delenv("COLUMNS", raising=False)
