"""What may still begin within a time budget."""

import math

import pytest

from modelyard.optimisation.search.budget import Took, epochs_left

CHEAP = Took(0, 4.0, ended=True)
TRAINED = Took(5, 24.0, ended=True)  # four seconds an epoch beside the cheap one's
RUNNING, REUSED = Took(5, None, ended=False), Took(5, None, ended=True)


@pytest.mark.parametrize(
    ("spent", "trials", "left"),
    [
        (99.0, (), math.inf),  # the first is always begun
        (0.0, (CHEAP,), math.inf),
        (97.0, (CHEAP,), -1.0),
        (0.0, (CHEAP, RUNNING), 0.0),  # how long it takes is not known yet
        (0.0, (CHEAP, REUSED), math.inf),
        (4.0, (CHEAP, TRAINED), 23.0),
        (4.0, (CHEAP, TRAINED, RUNNING), 23.0),
        (86.0, (CHEAP, TRAINED), 2.5),
        (97.0, (CHEAP, TRAINED), -1.0),
        (0.0, (Took(5, 10.0, ended=True), Took(2, 20.0, ended=True)), 10.0),  # by the slowest
        (0.0, (CHEAP, Took(5, 3.0, ended=True)), math.inf),
    ],
)
def test_a_trial_begins_that_likely_ends_in_time(spent: float, trials: tuple[Took, ...], left: float) -> None:
    assert epochs_left(100.0, spent, trials) == pytest.approx(left)
