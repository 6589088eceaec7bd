"""Buckets add up, and a project sees its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.metrics import BOUNDS, CallMetrics, Cell


@given(st.lists(st.floats(0, 500), max_size=50))
def test_every_call_falls_in_one_bucket(times):
    cell = Cell()
    for seconds in times:
        cell.count(200, seconds)
    assert sum(cell.buckets) == len(times) == cell.codes[200]
    for index, bound in enumerate(BOUNDS):
        assert sum(cell.buckets[: index + 1]) == sum(seconds <= bound for seconds in times)


def test_the_text():
    metrics = CallMetrics(lambda: [("a", "d", 3), ("b", "e", 4)])
    metrics.cell("a", "d", "1").count(200, 0.02)
    metrics.cell("a", "d", "1").count(503, 0.2)
    metrics.cell("b", "e", "1").count(200, 0.02)
    text = metrics.exposition("a").decode()
    assert 'modelyard_calls_total{code="503",model="d",project="a",version="1"} 1.0' in text
    assert 'modelyard_call_seconds_bucket{le="0.025",model="d",project="a",version="1"} 1.0' in text
    assert 'modelyard_call_seconds_bucket{le="+Inf",model="d",project="a",version="1"} 2.0' in text
    assert 'modelyard_queue_depth{model="d",project="a"} 3.0' in text
    assert 'project="b"' not in text
    assert 'project="b"' in metrics.exposition(None).decode()
