"""How slow a body may come, and how long an answer may lie unread."""

from __future__ import annotations

import pytest

from modelyard.serving.patience import RATE, Reader, Upload


def ended(rate: float, until: int = 1000, patience: float = 60, held: bool = False) -> float | None:
    """When a body that comes with `rate` bytes a second is given up."""
    upload = Upload()
    for tick in range(2 * until):
        if upload.is_late(1000 + tick / 2, patience, int(rate * tick / 2), held):
            return tick / 2
    return None


@pytest.mark.parametrize(("rate", "after"), [(0, 60.5), (1, 60.5), (RATE / 2, 120.5), (RATE, None), (10 * RATE, None)])
def test_a_body_must_keep_a_pace(rate: float, after: float | None) -> None:
    assert ended(rate) == after


def test_a_body_that_came_fast_and_stops_has_no_more_patience_than_any() -> None:
    upload = Upload()
    assert not upload.is_late(10, 60, 0, False)
    assert not upload.is_late(20, 60, 10**9, False)
    assert not upload.is_late(79, 60, 10**9, False)
    assert upload.is_late(81, 60, 10**9, False)


def test_a_body_that_is_held_is_never_late() -> None:
    assert ended(0, held=True) is None


def test_answers_must_be_taken() -> None:
    reader = Reader(0)
    assert not reader.is_stuck(100, 75, 0)
    assert not reader.is_stuck(101, 75, 50)
    assert not reader.is_stuck(170, 75, 60)  # more was written, none was taken
    assert reader.is_stuck(176, 75, 60)
    assert not reader.is_stuck(177, 75, 59)
    assert not reader.is_stuck(251, 75, 59)
    assert reader.is_stuck(253, 75, 59)
