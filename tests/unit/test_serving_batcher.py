"""What is waited for, counted, predicted and refused around batches that really run in a thread."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from serving_fakes import FakeLoop

from modelyard.serving.batcher import COURTESY, LONG, Batcher
from modelyard.serving.batching import Limits, Waiting


def waiting(call, rows=1, deadline=1e12, cancelled=False):
    item = Waiting({"x": np.full((rows, 2), call, np.float32)}, rows, deadline, call)
    item.cancelled = cancelled
    return item


class Run:
    """A batcher on a loop by hand; its worker thread is real."""

    def __init__(self, forward, limits=None, **options):
        self.loop, self.done, self.given_up = FakeLoop(), [], []
        self.batcher = Batcher(self.loop, forward, limits or Limits(), self._done, self.given_up.append, **options)

    def _done(self, batch, answers, cpu_us):
        assert cpu_us >= 0
        self.done.append([item.call for item in batch])

    def until(self, calls):
        late = time.monotonic() + 30  # a batch is computed in a thread, which a busy machine may keep waiting
        while time.monotonic() < late:
            self.loop.turn()
            time.sleep(0.0002)
            if sum(map(len, self.done)) + len(self.given_up) >= calls:
                return
        raise AssertionError("calls were lost")


def test_what_comes_in_one_turn_is_one_batch():
    run = Run(lambda batch: {"y": batch["x"]})
    for number in range(20):
        run.batcher.put(waiting(number))
    run.until(20)
    run.batcher.close()
    assert run.done == [list(range(20))]
    assert run.batcher.stats.batches == 1


def test_what_comes_while_a_batch_runs_is_the_next_one():
    entered, go = threading.Event(), threading.Event()

    def forward(batch):
        entered.set()
        assert go.wait(10)
        return {"y": batch["x"]}

    run = Run(forward)
    run.batcher.put(waiting(0))
    run.loop.turn()
    assert entered.wait(10)
    for number in range(1, 5):
        run.batcher.put(waiting(number, cancelled=number == 2))
    assert not run.loop.soon
    go.set()
    run.until(5)
    run.batcher.close()
    assert run.done == [[0], [1, 3, 4]]
    assert [item.call for item in run.given_up] == [2]


class Slow:
    """Sleeps so many seconds a batch and a row; or waits to be let go."""

    def __init__(self, batch=0.0, row=0.0):
        self.batch, self.row = batch, row
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def __call__(self, batch):
        self.entered.set()
        assert self.go.wait(10)
        time.sleep(self.batch + self.row * len(batch["x"]))
        return {"y": batch["x"]}


def taught(model, limits=None, **options):
    run = Run(model, limits, **options)
    for rows in (1, 2, 4, 8):
        run.batcher.pace.learn(rows, model.batch + model.row * rows)
    return run


def test_batches_are_counted():
    run = Run(Slow(0.01), Limits(4))
    for number in range(6):
        run.batcher.put(waiting(number))
    run.until(6)
    run.batcher.close()
    stats = run.batcher.stats
    assert (stats.batches, stats.rows, stats.failures) == (2, 6, 0)
    assert stats.sizes[1] == 1  # of two rows
    assert stats.sizes[2] == 1
    assert 0.02 <= stats.compute < 1
    assert 0.02 <= stats.queue < 2  # two calls waited for the first batch


def test_who_finds_nobody_is_taken_whatever_is_thought_of_the_pace():
    run = taught(Slow(100.0), target=0.01)
    assert run.batcher.overload(0, 1.0) is None
    run.batcher.close()


def test_a_slow_start_does_not_lock_the_door():
    run = Run(Slow(), target=0.02)
    run.batcher.pace.learn(1, 5.0)
    calls = 0
    while run.batcher.pace.batch(1) > 0.1:
        assert run.batcher.overload(0, 1.0) is None
        run.batcher.put(waiting(calls))
        calls += 1
        run.until(calls)
        assert calls < 40
    run.batcher.close()


def held(target=None, limits=None):
    """A batch of one row runs, 10 ms each, and none ends."""
    model = Slow(0.0, 0.01)
    run = taught(model, limits or Limits(1), target=target)
    model.go.clear()
    run.batcher.put(waiting(0))
    run.loop.turn()
    assert model.entered.wait(10)
    return run, model


def test_a_call_beyond_the_target_is_refused_and_told_both_times():
    run, model = held(target=0.1)
    for number in range(1, 20):
        if run.batcher.overload(number, 60.0):
            break
        run.batcher.put(waiting(number))
    assert 4 <= number <= 11  # of ten in 100 ms one runs; a busy machine lets time pass here
    seconds, allowed = run.batcher.overload(number, 60.0)
    assert seconds > allowed == pytest.approx(0.1)
    model.go.set()
    run.until(number)
    assert run.batcher.overload(0, 60.0) is None
    run.batcher.close()


def test_a_deadline_counts_as_well_and_calls_on_their_way_do():
    run, model = held()
    assert run.batcher.overload(1, 60.0) is None
    assert run.batcher.overload(1 + 1000, 5.0) is not None  # a thousand are being decoded
    assert run.batcher.overload(1, 0.001) is not None
    model.go.set()
    run.until(1)
    run.batcher.close()


def test_a_batch_that_hangs_lets_nobody_wait_for_it():
    run, model = held()
    run.batcher._began -= 30
    seconds, allowed = run.batcher.overload(1, 20.0)
    assert seconds == pytest.approx(30, abs=2)
    assert allowed == 20.0
    model.go.set()
    run.until(1)
    run.batcher.close()


def test_the_target_makes_batches_smaller():
    run = taught(Slow(0.0, 0.003), Limits(128), target=0.06)
    run.batcher.put(waiting(0))
    run.until(1)
    for number in range(1, 41):
        run.batcher.put(waiting(number))
    run.until(41)
    run.batcher.close()
    assert max(map(len, run.done)) <= 16


def test_a_model_that_is_broken_is_told_once_it_failed_what_it_could():
    def forward(batch):
        if forward.broken:
            raise MemoryError("all gone")
        return {"y": batch["x"]}

    forward.broken = False
    errors = []
    run = Run(forward, broken=errors.append)
    run.batcher.put(waiting(0))
    run.until(1)
    forward.broken = True
    for number in range(1, 26):
        assert not errors
        run.batcher.put(waiting(number))
        run.until(number + 1)
        if errors:
            break
    run.batcher.close()
    assert number == 20
    assert errors[0].message.endswith("The model failed: MemoryError: all gone")
    assert run.batcher.stats.failures == 20


@pytest.mark.parametrize(
    ("seconds", "nice", "told"), [(2 * LONG, 0, [COURTESY]), (0.0, 0, []), (2 * LONG, COURTESY + 10, [COURTESY])]
)
def test_a_model_of_long_batches_makes_way_once_and_never_the_other_way(seconds, nice, told):
    priorities, yielded = [], []

    def forward(batch):
        mine = (os.PRIO_PROCESS, threading.get_native_id())
        if not priorities:
            os.setpriority(*mine, max(nice, os.getpriority(*mine)))  # as where somebody starts the platform so
        priorities.append(os.getpriority(*mine))
        time.sleep(seconds)
        return {"y": batch["x"]}

    run = Run(forward, yields=yielded.append)
    for number in range(4):
        run.batcher.put(waiting(number))
        run.until(number + 1)
    run.batcher.close()
    assert yielded == told
    assert priorities[-1] == max(priorities[0], *told, 0)
