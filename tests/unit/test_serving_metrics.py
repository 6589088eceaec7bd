"""Buckets add up, and a project sees its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.metrics import UNEXPECTED
from modelyard.serving.metrics import BOUNDS, CallMetrics, Cell, exposition


@given(st.lists(st.floats(0, 500), max_size=50))
def test_every_call_falls_in_one_bucket(times):
    cell = Cell()
    for seconds in times:
        cell.count(200, seconds)
    assert sum(cell.buckets) == len(times) == cell.codes[200]
    for index, bound in enumerate(BOUNDS):
        assert sum(cell.buckets[: index + 1]) == sum(seconds <= bound for seconds in times)


def test_the_text():
    metrics = CallMetrics(lambda: {("a", "d", "1"): 3, ("b", "e", "1"): 4})
    metrics.cell("a", "d", "1").count(200, 0.02)
    metrics.cell("a", "d", "1").count(503, 0.2)
    metrics.cell("b", "e", "1").count(200, 0.02)
    text = exposition(metrics.families("a")).decode()
    assert 'modelyard_calls_total{code="503",model="d",project="a",version="1"} 1.0' in text
    assert 'modelyard_call_seconds_bucket{le="0.025",model="d",project="a",version="1"} 1.0' in text
    assert 'modelyard_call_seconds_bucket{le="+Inf",model="d",project="a",version="1"} 2.0' in text
    assert 'modelyard_queue_depth{model="d",project="a",version="1"} 3.0' in text
    assert 'project="b"' not in text
    assert 'project="b"' in exposition(metrics.families(None)).decode()


CONTROL = b"""\
# HELP process_open_fds Number of open file descriptors.
# TYPE process_open_fds gauge
process_open_fds 99.0
# HELP modelyard_unexpected_errors_total Exceptions nobody expected, by process.
# TYPE modelyard_unexpected_errors_total counter
modelyard_unexpected_errors_total{process="control"} 3.0
# HELP modelyard_unexpected_errors_created Exceptions nobody expected, by process.
# TYPE modelyard_unexpected_errors_created gauge
modelyard_unexpected_errors_created{process="control"} 1.7e+09
# HELP modelyard_only_control_knows_total Attempts of jobs that ended, by how.
# TYPE modelyard_only_control_knows_total counter
modelyard_only_control_knows_total{state="failed"} 2.0
"""


def test_what_control_tells_is_added_and_no_family_is_told_twice():
    UNEXPECTED.clear()  # a test beside this one may have played control
    UNEXPECTED.labels("gateway").inc()
    text = exposition([], CONTROL).decode()
    assert 'modelyard_only_control_knows_total{state="failed"} 2.0' in text
    assert 'modelyard_unexpected_errors_total{process="control"} 3.0' in text
    assert 'modelyard_unexpected_errors_total{process="gateway"}' in text
    assert "modelyard_control_up 1.0" in text
    assert "process_open_fds 99.0" not in text
    told = [line.split()[:3] for line in text.splitlines() if line.startswith("# ")]
    assert len(told) == len(set(map(tuple, told)))
    series = [line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(series) == len(set(series))
    assert "modelyard_control_up 0.0" in exposition([]).decode()
