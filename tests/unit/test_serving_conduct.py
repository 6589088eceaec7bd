"""A model that fails whatever it is asked is broken; one that fails what it cannot answer is not."""

from __future__ import annotations

import numpy as np
import pytest

from modelyard.errors import Internal, Invalid
from modelyard.serving.batching import Waiting, compute
from modelyard.serving.conduct import FAILURES, Conduct

GOOD, BAD = 1.0, -1.0


class Model:
    def __init__(self):
        self.broken: str | None = None
        self.asked = 0

    def __call__(self, batch):
        self.asked += 1
        x = batch["x"]
        assert x.flags.writeable
        if self.broken == "nan":
            return {"y": x * np.nan}
        if self.broken == "shape":
            return {"y": x[:0]}
        if self.broken == "invalid":
            raise Invalid("not so")
        if self.broken or (x == BAD).any():
            raise RuntimeError(self.broken or "out of range")
        if self.asked > 1:
            x[:] = BAD  # what is kept must not be what this writes to
        return {"y": np.zeros_like(x)}


def judged(conduct, model, *values):
    batch = [Waiting({"x": np.full((1, 2), value, np.float32)}, 1, 0.0, None) for value in values]
    return conduct.judge(batch, *compute(model, batch))


def test_calls_that_no_model_could_answer_break_nothing():
    model = Model()
    conduct = Conduct(model)
    assert judged(conduct, model, GOOD) is None
    for _ in range(5 * FAILURES):
        assert judged(conduct, model, BAD) is None


@pytest.mark.parametrize(("how", "says"), [("gone", "RuntimeError: gone"), ("shape", "for 1 rows"), ("nan", "answers NaN")])
def test_a_broken_model_is_told_after_so_many_failures(how, says):
    model = Model()
    conduct = Conduct(model)
    assert judged(conduct, model, GOOD) is None
    model.broken = how
    for _ in range(FAILURES - 1):
        assert judged(conduct, model, GOOD) is None
    error = judged(conduct, model, GOOD)
    assert isinstance(error, Internal)
    assert says in error.message
    assert f"{FAILURES} calls" in error.message


def test_a_good_call_between_begins_the_count_anew():
    model = Model()
    conduct = Conduct(model, {"x": np.zeros((1, 2), np.float32)})
    for number in range(3 * FAILURES):
        model.broken = None if number % FAILURES == 5 else "gone"
        assert judged(conduct, model, GOOD) is None
    assert judged(conduct, model, GOOD) is None


def test_the_callers_mistakes_are_neither_good_nor_bad():
    model = Model()
    conduct = Conduct(model)
    model.broken = "invalid"
    for _ in range(5 * FAILURES):
        assert judged(conduct, model, GOOD) is None
    model.broken = "gone"
    for number in range(FAILURES):
        model.broken = "gone"
        error = judged(conduct, model, GOOD)
        assert (error is not None) == (number == FAILURES - 1)
        model.broken = "invalid"
        judged(conduct, model, GOOD)


def test_a_model_that_never_answered_is_broken_without_being_tried():
    model = Model()
    conduct = Conduct(model)
    errors = [judged(conduct, model, BAD) for _ in range(FAILURES)]
    assert [error is not None for error in errors] == [False] * (FAILURES - 1) + [True]
    assert model.asked == FAILURES


def test_the_known_row_is_asked_only_when_it_matters():
    model = Model()
    conduct = Conduct(model, {"x": np.zeros((1, 2), np.float32)})
    for _ in range(100):
        judged(conduct, model, GOOD, GOOD)
    assert model.asked == 100
