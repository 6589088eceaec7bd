"""How strays are told of. That they are found and ended is tested with real gangs, in the flows."""

import os

from modelyard.jobs import strays


def test_one_and_many_are_told_in_a_sentence() -> None:
    assert strays.shown(["7 (sleep)"]) == "left a process running, which the platform ended: 7 (sleep)"
    many = strays.shown([f"{pid} (sleep)" for pid in range(8)])
    assert many.startswith("left 8 processes running, which the platform ended: 0 (sleep); 1 (sleep)")
    assert many.endswith("4 (sleep) and 3 more")


def test_a_process_is_described_by_its_number_and_arguments() -> None:
    found = strays._described(os.getpid())
    assert found is not None
    assert found.startswith(f"{os.getpid()} (")
    assert found.isprintable()
    assert len(found) <= 140


def test_a_process_that_is_gone_is_not_described() -> None:
    assert strays._described(2**22 + 1) is None
