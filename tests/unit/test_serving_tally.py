"""Sums over replicas that come and go never go back, and nothing a replica says breaks them."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.metrics import exposition
from modelyard.serving.stats import SIZES, Stats
from modelyard.serving.tally import Tally

OURS, THEIRS = ("a", "d", "1"), ("b", "e", "2")
BATCHES = st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), st.integers(1, 2000)), max_size=40)


def text_of(tally, project=None):
    return exposition(tally.families(project)).decode()


def value(text, series):
    return float(next(line.rpartition(" ")[2] for line in text.splitlines() if line.startswith(series)))


@given(BATCHES)
def test_the_sum_over_replicas_is_what_they_counted_and_only_grows(batches):
    tally = Tally(list)
    tally.know(OURS, ["one", "two"])
    tally.know(THEIRS, ["three"])
    replicas, rows, before = {}, Counter(), 0.0
    for token, size in batches:
        replica = replicas.setdefault(token, Stats())
        replica.batch(size, 0.5, 0.25, 1)
        tally.told(token, replica.to_wire())
        tally.know(OURS, ["one", "two"])  # as with every change of the routes
        rows[token] += size
        now = sum(total.rows for total in tally._sums.values())
        assert now > before
        before = now
    total = tally._sums.get(OURS, Stats())
    ours = [size for token, size in batches if token != "three"]
    assert (total.rows, total.batches, total.failures) == (sum(ours), len(ours), len(ours))
    assert (total.compute, total.queue) == (0.5 * len(ours), 0.25 * len(ours))
    for index, bound in enumerate(SIZES):
        assert sum(total.sizes[: index + 1]) == sum(size <= bound for size in ours)


def test_a_replica_that_is_replaced_takes_nothing_with_it():
    tally = Tally(lambda: [(OURS, "ready")])
    tally.know(OURS, ["old"])
    old, new = Stats(), Stats()
    for _ in range(5):
        old.batch(8, 0.1, 0.0, 0)
    tally.told("old", old.to_wire())
    tally.know(OURS, ["new"])
    new.batch(2, 0.1, 0.0, 0)
    tally.told("new", new.to_wire())
    old.batch(8, 0.1, 0.0, 0)  # its last calls
    tally.told("old", old.to_wire())
    tally.told("stranger", old.to_wire())
    text = text_of(tally)
    assert value(text, 'modelyard_batches_total{model="d",project="a",version="1"}') == 7
    assert value(text, 'modelyard_batch_rows_sum{model="d",project="a",version="1"}') == 50
    assert value(text, 'modelyard_batch_rows_bucket{le="2",model="d",project="a",version="1"}') == 1
    assert value(text, 'modelyard_batch_rows_bucket{le="+Inf",model="d",project="a",version="1"}') == 7
    assert value(text, 'modelyard_replicas{model="d",project="a",state="ready",version="1"}') == 1
    assert value(text, 'modelyard_replicas{model="d",project="a",state="lost",version="1"}') == 0


def test_a_project_sees_its_own():
    tally = Tally(lambda: [(OURS, "ready"), (THEIRS, "lost"), (THEIRS, "lost")])
    for labels, token in ((OURS, "one"), (THEIRS, "two")):
        tally.know(labels, [token])
        tally.told(token, Stats().to_wire())
    assert 'project="b"' not in text_of(tally, "a")
    assert value(text_of(tally), 'modelyard_replicas{model="e",project="b",state="lost",version="2"}') == 2


@pytest.mark.parametrize(
    "stats",
    [
        {},
        {"batches": "many", "rows": None, "sizes": 3, "compute": float("nan"), "queue": float("inf")},
        {"batches": -1, "rows": True, "sizes": [1], "compute": [], "units": 1e30},
        {"sizes": ["x"] * 12},
        {"sizes": [-1] * 12},
    ],
)
def test_what_is_no_counter_changes_nothing(stats):
    tally = Tally(list)
    tally.know(OURS, ["one"])
    good = Stats()
    good.batch(8, 0.5, 0.5, 0)
    tally.told("one", good.to_wire())
    before = text_of(tally)
    tally.told("one", stats)
    assert [line for line in text_of(tally).splitlines() if "_batch" in line] == [
        line for line in before.splitlines() if "_batch" in line
    ]
    assert tally._sums[OURS].to_wire() == good.to_wire()


def test_replicas_of_long_ago_are_forgotten():
    tally = Tally(list)
    tally.know(OURS, map(str, range(20_000)))
    assert len(tally._replicas) == 10_000
    assert "19999" in tally._replicas
