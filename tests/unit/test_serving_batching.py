"""What goes together, and what comes back: no call lost, doubled, overtaken or given another's rows."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import FakeLoop

from modelyard.errors import Internal, Invalid
from modelyard.serving.batching import Batcher, Limits, Waiting, compute, join, next_batch, split

NOW = 1000.0


def waiting(call, rows=1, width=2, deadline=2000.0, cancelled=False, dtype=np.float32):
    item = Waiting({"x": np.full((rows, width), call, dtype)}, rows, deadline, call)
    item.cancelled = cancelled
    return item


CALLS = st.lists(
    st.builds(
        lambda rows, width, late, cancelled: (rows, width, 900.0 if late else 2000.0, cancelled),
        st.integers(1, 6),
        st.integers(1, 3),
        st.booleans(),
        st.booleans(),
    ),
    max_size=30,
)


@given(CALLS, st.integers(1, 12), st.booleans())
def test_every_call_goes_somewhere_once_and_in_order(calls, rows, merge):
    items = [waiting(number, *fields) for number, fields in enumerate(calls)]
    batch, rest, given_up = next_batch(items, Limits(rows, merge), NOW)
    assert sorted(item.call for item in (*batch, *rest, *given_up)) == list(range(len(items)))
    assert all([item.call for item in part] == sorted(item.call for item in part) for part in (batch, rest, given_up))
    assert all(item.cancelled or item.deadline <= NOW for item in given_up)
    assert not any(item.cancelled or item.deadline <= NOW for item in (*batch, *rest))
    if batch:
        assert len({item.kind for item in batch}) == 1
        assert sum(item.rows for item in batch) <= rows or len(batch) == 1
        assert batch[0].call == min(item.call for item in (*batch, *rest))  # the eldest is never passed over
        assert merge or len(batch) == 1
    else:
        assert not rest


@given(CALLS, st.integers(1, 12))
def test_repeated_batches_reach_every_call(calls, rows):
    alive = [waiting(number, *fields) for number, fields in enumerate(calls)]
    seen = []
    for _ in range(len(calls) + 1):
        batch, alive, given_up = next_batch(alive, Limits(rows), NOW)
        seen += [item.call for item in (*batch, *given_up)]
    assert sorted(seen) == list(range(len(calls)))


def test_calls_of_one_kind_keep_their_order():
    items = [waiting(0, rows=3), waiting(1, rows=3), waiting(2, rows=1)]
    batch, rest, _ = next_batch(items, Limits(4), NOW)
    assert [item.call for item in batch] == [0]
    assert [item.call for item in rest] == [1, 2]


def test_all_that_waits_goes_together():
    items = [waiting(number) for number in range(100)]
    batch, rest, _ = next_batch(items, Limits(128), NOW)
    assert len(batch) == 100
    assert not rest


def test_kinds_differ_by_name_datatype_and_shape_but_not_rows():
    base = waiting(0).kind
    assert waiting(1, rows=5).kind == base
    assert waiting(1, width=3).kind != base
    assert waiting(1, dtype=np.float64).kind != base
    assert Waiting({"z": np.zeros((1, 2), np.float32)}, 1, 0, 0).kind != base
    two = {"x": np.zeros((1, 2)), "m": np.zeros((1, 3))}
    assert Waiting(two, 1, 0, 0).kind == Waiting(dict(reversed(two.items())), 1, 0, 0).kind


def test_a_scalar_never_shares_a_batch():
    first, second = (Waiting({"x": np.float32(1).reshape(())}, 1, 2000.0, n) for n in range(2))
    batch, rest, _ = next_batch([first, second], Limits(), NOW)
    assert (len(batch), len(rest)) == (1, 1)


@given(CALLS.filter(bool))
def test_answers_are_never_crossed(calls):
    items = [waiting(number, rows, 2) for number, (rows, *_) in enumerate(calls)]
    answers = compute(lambda batch: {"y": batch["x"].sum(axis=1, keepdims=True)}, items)
    for item, answer in zip(items, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], np.full((item.rows, 1), 2 * item.call))


def test_one_bad_call_fails_alone():
    def forward(batch):
        if (batch["x"] == 3).any():
            raise ValueError("three\nand more")
        return {"y": batch["x"]}

    answers = compute(forward, [waiting(number) for number in range(6)])
    assert [isinstance(answer, Internal) for answer in answers] == [False, False, False, True, False, False]
    assert answers[3].message == "The model failed: ValueError: three"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_model_that_exits_fails_its_own_calls(error):
    def forward(batch):
        if (batch["x"] == 3).any():
            raise error
        return {"y": batch["x"]}

    answers = compute(forward, [waiting(number) for number in range(6)])
    assert [isinstance(answer, Internal) for answer in answers] == [False, False, False, True, False, False]
    assert answers[3].message.startswith(f"The model failed: {type(error).__name__}: ")


def test_an_error_of_ours_keeps_its_class():
    def forward(batch):
        raise Invalid("not so")

    assert [type(answer) for answer in compute(forward, [waiting(1), waiting(2)])] == [Invalid, Invalid]


@pytest.mark.parametrize("answer", [np.zeros((3, 1)), np.zeros(()), [1, 2], np.zeros((0, 1))])
def test_a_model_that_answers_with_other_rows(answer):
    [error] = compute(lambda batch: {"y": answer}, [waiting(1, rows=2)])
    assert isinstance(error, Internal)
    assert "for 2 rows; expected 2 rows" in error.message


def test_a_model_that_answers_too_little_only_when_batched():
    answers = compute(lambda batch: {"y": batch["x"][:1]}, [waiting(1), waiting(2)])
    assert [answer["y"][0, 0] for answer in answers] == [1, 2]


def test_joined_arrays_can_be_written_to():
    frozen = np.frombuffer(b"\x00" * 8, np.float32).reshape(1, 2)
    item = Waiting({"x": frozen}, 1, 0, 0)
    assert join([item])["x"].flags.writeable
    assert join([item, item])["x"].flags.writeable
    own = np.zeros((1, 2))
    assert join([Waiting({"x": own}, 1, 0, 0)])["x"] is own


def test_split_is_by_rows():
    items = [waiting(0, rows=2), waiting(1, rows=1)]
    first, second = split({"y": np.arange(3)}, items)
    assert first["y"].tolist() == [0, 1]
    assert second["y"].tolist() == [2]


class Run:
    """A batcher on a loop by hand; its worker thread is real."""

    def __init__(self, forward, limits=None):
        self.loop, self.done, self.given_up = FakeLoop(), [], []
        self.batcher = Batcher(self.loop, forward, limits or Limits(), self._done, self.given_up.append)

    def _done(self, batch, answers, cpu_us):
        assert cpu_us >= 0
        self.done.append([item.call for item in batch])

    def until(self, calls):
        late = time.monotonic() + 30  # a batch is computed in a thread, which a busy machine may keep waiting
        while time.monotonic() < late:
            self.loop.turn()
            if sum(map(len, self.done)) + len(self.given_up) >= calls:
                return
        raise AssertionError("calls were lost")


def test_what_comes_in_one_turn_is_one_batch():
    run = Run(lambda batch: {"y": batch["x"]})
    for number in range(20):
        run.batcher.put(waiting(number, deadline=1e12))
    run.until(20)
    run.batcher.close()
    assert run.done == [list(range(20))]
    assert run.batcher.steps == 1


def test_what_comes_while_a_batch_runs_is_the_next_one():
    entered, go = threading.Event(), threading.Event()

    def forward(batch):
        entered.set()
        assert go.wait(10)
        return {"y": batch["x"]}

    run = Run(forward)
    run.batcher.put(waiting(0, deadline=1e12))
    run.loop.turn()
    assert entered.wait(10)
    for number in range(1, 5):
        run.batcher.put(waiting(number, deadline=1e12, cancelled=number == 2))
    assert not run.loop.soon
    go.set()
    run.until(5)
    run.batcher.close()
    assert run.done == [[0], [1, 3, 4]]
    assert [item.call for item in run.given_up] == [2]
