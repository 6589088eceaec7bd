"""What goes together, and what comes back: no call lost, doubled, overtaken or given another's rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Internal, Invalid
from modelyard.serving.batching import TYPICAL, Limits, Waiting, compute, join, next_batch, patience, split

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
    answers, failed = compute(lambda batch: {"y": batch["x"].sum(axis=1, keepdims=True)}, items)
    for item, answer in zip(items, answers, strict=True):
        np.testing.assert_array_equal(answer["y"], np.full((item.rows, 1), 2 * item.call))
    assert failed == 0


def test_one_bad_call_fails_alone():
    def forward(batch):
        if (batch["x"] == 3).any():
            raise ValueError("three\nand more")
        return {"y": batch["x"]}

    answers, failed = compute(forward, [waiting(number) for number in range(6)])
    assert failed == 1
    assert [isinstance(answer, Internal) for answer in answers] == [False, False, False, True, False, False]
    assert answers[3].message == "The model failed: ValueError: three"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_a_model_that_exits_fails_its_own_calls(error):
    def forward(batch):
        if (batch["x"] == 3).any():
            raise error
        return {"y": batch["x"]}

    answers, failed = compute(forward, [waiting(number) for number in range(6)])
    assert failed == 1
    assert [isinstance(answer, Internal) for answer in answers] == [False, False, False, True, False, False]
    assert answers[3].message.startswith(f"The model failed: {type(error).__name__}: ")


def test_an_error_of_ours_keeps_its_class():
    def forward(batch):
        raise Invalid("not so")

    answers, failed = compute(forward, [waiting(1), waiting(2)])
    assert [type(answer) for answer in answers] == [Invalid, Invalid]
    assert failed == 0  # the callers' fault


@pytest.mark.parametrize("answer", [np.zeros((3, 1)), np.zeros(()), [1, 2], np.zeros((0, 1))])
def test_a_model_that_answers_with_other_rows(answer):
    [error], failed = compute(lambda batch: {"y": answer}, [waiting(1, rows=2)])
    assert failed == 1
    assert isinstance(error, Internal)
    assert "for 2 rows; expected 2 rows" in error.message


def test_a_model_that_answers_too_little_only_when_batched():
    answers, failed = compute(lambda batch: {"y": batch["x"][:1]}, [waiting(1), waiting(2)])
    assert failed == 0
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


# Calls that differ in length


def text(call, length, rows=1, due=1000, deadline=2000.0):
    item = Waiting({"ids": np.full((rows, length), call + 1, np.int64)}, rows, deadline, call, {"ids": 0})
    item.due = due
    return item


TEXTS = st.lists(st.tuples(st.integers(1, 200), st.sampled_from([1, 1, 1, 2, 5])), min_size=1, max_size=60)


@given(TEXTS, st.integers(1, 16), st.integers(0, 60))
def test_texts_go_somewhere_once_and_are_little_padded(calls, rows, elders_due):
    items = [text(number, *fields, due=0 if number < elders_due else 9) for number, fields in enumerate(calls)]
    limits = Limits(rows, length=TYPICAL)
    batch, rest, given_up = next_batch(items, limits, NOW, turn=1)
    assert sorted(item.call for item in (*batch, *rest)) == list(range(len(items)))
    assert not given_up
    assert batch[0].call == 0  # the eldest is never passed over
    longest = max(item.length for item in batch)
    assert len(batch) == 1 or sum(item.rows for item in batch) * longest <= limits.most
    due = [item for item in items if item.due <= 1]
    assert [item.call for item in batch if item in due] == [item.call for item in due if item in batch]
    if not set(due) <= set(batch):
        assert set(batch) <= {*due, items[0]}  # nobody goes before one whose turn has come
    for item in batch:
        if item not in due and item.call:
            assert item.rows * (longest - item.length) <= limits.most / 16
    if not due:
        assert batch[0].rows * (longest - batch[0].length) <= limits.most / 16


@given(TEXTS, st.integers(1, 16))
def test_no_text_is_passed_over_for_long(calls, rows):
    """While others keep coming: each waits at most twice the batches that are ahead of it, and a few, and those due before."""
    limits = Limits(rows, length=TYPICAL)
    chance, alive, ahead, born, worst = np.random.default_rng(0), [], 0, {}, 0
    coming = [text(number, *fields) for number, fields in enumerate(calls)]
    turn, number = 0, len(coming)
    while born.keys() - set(range(len(calls), number)) or turn == 0:
        for item in coming:
            item.due = turn + patience(ahead, limits.most)
            born[item.call] = (turn, item.due)
            ahead += item.work
        alive += coming
        batch, alive, _ = next_batch(alive, limits, NOW, turn)
        ahead = sum(item.work for item in alive)
        for item in batch:
            since, due = born.pop(item.call)
            worst = max(worst, turn - due)
            assert turn - since <= 3 * (due - since) + 3
        turn += 1
        coming = [text(number, int(chance.integers(1, 200))) for _ in range(len(batch))]
        coming = [text(number + i, item.length) for i, item in enumerate(coming)]
        number += len(coming)


def throughput(clients, order):
    """Useful elements a second of a simulated model, 4 ms a batch and 0.1 ms an element, for so many clients that ask again as
    soon as they are answered."""
    chance, limits = np.random.default_rng(1), Limits(8, length=TYPICAL)
    fresh = iter(range(10**6))

    def one():
        return text(next(fresh), int(chance.integers(5, 201)), due=order.due(turn))

    turn, useful, seconds = 0, 0, 0.0
    alive = [one() for _ in range(clients)]
    for turn in range(1, 600):
        batch, alive = order.choose(alive, limits, turn)
        useful += sum(item.work for item in batch)
        seconds += 0.004 + 1e-4 * len(batch) * max(item.length for item in batch)
        alive += [one() for _ in batch]
    return useful / seconds


class Ours:
    def __init__(self, clients):
        self.clients = clients

    def due(self, turn):
        return turn + patience(self.clients * 100, 8 * TYPICAL)

    def choose(self, alive, limits, turn):
        return next_batch(alive, limits, NOW, turn)[:2]


class Sorted:
    """The pool sorted by length and cut into full batches, one after another: what a script would do."""

    def __init__(self):
        self.pool = []

    def due(self, turn):
        return 0

    def choose(self, alive, limits, turn):
        if not self.pool:
            self.pool = sorted(alive, key=lambda item: -item.length)
        batch = [self.pool.pop(0)]
        while self.pool and (len(batch) + 1) * batch[0].length <= limits.most:
            batch.append(self.pool.pop(0))
        return batch, [item for item in alive if item not in batch]


@pytest.mark.parametrize("clients", [32, 128])
def test_as_much_is_done_as_with_a_sorted_pool(clients):
    ours, best = throughput(clients, Ours(clients)), throughput(clients, Sorted())
    assert ours / best >= 0.95, (ours, best)


def test_in_order_of_arrival_it_would_be_less():
    class InOrder(Ours):
        def due(self, turn):
            return 0

    assert throughput(32, InOrder(32)) < 0.9 * throughput(32, Sorted())


def test_texts_are_padded_to_the_longest_and_answers_cut_back():
    items = [text(0, 2), text(1, 5, rows=2), text(2, 3)]
    joined = join(items)["ids"]
    assert joined.tolist() == [[1, 1, 0, 0, 0], [2] * 5, [2] * 5, [3, 3, 3, 0, 0]]
    answers, _ = compute(lambda b: {"each": b["ids"] * 10, "whole": b["ids"].sum(axis=1)}, items, frozenset({"each"}))
    assert [a["each"].tolist() for a in answers] == [[[10, 10]], [[20] * 5] * 2, [[30] * 3]]
    assert [a["whole"].tolist() for a in answers] == [[2], [10, 10], [9]]


def test_texts_of_other_names_types_or_later_dims_do_not_meet():
    base = text(0, 3).kind
    assert text(1, 9).kind == base
    assert Waiting({"ids": np.zeros((1, 3), np.int32)}, 1, 0, 0, {"ids": 0}).kind != base
    assert Waiting({"ids": np.zeros((1, 3), np.int64)}, 1, 0, 0).kind != base
    assert Waiting({"ids": np.zeros((1, 3, 2), np.int64)}, 1, 0, 0, {"ids": 0}).kind != base
    assert Waiting({"ids": np.zeros(3, np.int64)}, 3, 0, 0, {"ids": 0}).length == 1


# What a model does wrong


def test_nan_is_answered_and_counted_against_the_model_alone():
    def forward(batch):
        return {"y": np.where(batch["x"] == 3, np.nan, batch["x"]).astype(batch["x"].dtype)}

    items = [waiting(number) for number in range(5)]
    items[1].arrays = {"x": np.full((1, 2), np.nan, np.float32)}  # the caller's own
    answers, failed = compute(forward, items)
    assert failed == 1
    assert [bool(np.isnan(answer["y"]).any()) for answer in answers] == [False, True, False, True, False]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_infinity_and_large_numbers_are_no_nan(dtype):
    large = np.array([[np.inf, np.finfo(dtype).max]], dtype)
    assert compute(lambda batch: {"y": large, "n": np.array([[3]]), "t": np.array([b"x"], object)}, [waiting(1)])[1] == 0


class Mute(Exception):
    def __str__(self):
        raise ValueError("not even this")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("no room"), "The model failed: MemoryError: no room"),
        (SystemExit(3), "The model failed: SystemExit: 3"),
        (Mute(), "The model failed: Mute: "),
        (ValueError("half \ud800 a letter"), "The model failed: ValueError: half ? a letter"),
    ],
)
def test_whatever_a_model_raises_is_its_calls_error(error, says):
    def forward(batch):
        if (batch["x"] == 1).any():
            raise error
        return {"y": batch["x"]}

    answers, failed = compute(forward, [waiting(number) for number in range(3)])
    assert failed == 1
    assert [isinstance(answer, Internal) for answer in answers] == [False, True, False]
    assert answers[1].message == says
