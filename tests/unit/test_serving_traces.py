"""Which calls are sampled, what their spans are, and what of them is written."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving import traces
from modelyard.serving.traces import Traces, is_sampled, within

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{ID}-{SPAN}-01"


def made(folder, sample=0.0):
    return Traces(folder / "logs" / "spans.jsonl", sample)


def spans_of(lines):
    found = [span for line in lines for span in line["resourceSpans"][0]["scopeSpans"][0]["spans"]]
    return {span["name"]: span for span in found}


def stretch(span):
    return int(span["startTimeUnixNano"]) / 1e9, int(span["endTimeUnixNano"]) / 1e9


def test_the_trace_of_a_caller_goes_on_in_a_span_of_ours(tmp_path):
    head = {"traceparent": GIVEN}
    trace = made(tmp_path).begin(head)
    assert (trace.id, trace.parent, trace.span != SPAN) == (ID, SPAN, True)
    assert head == {"traceparent": f"00-{ID}-{trace.span}-01"}
    assert is_sampled(head)


@pytest.mark.parametrize(
    "given_", [f"00-{ID}-{SPAN}-00", f"00-{ID}-{SPAN}-02", "", "x" * 55, f"00-{ID}-{SPAN}-1", f"{GIVEN}, {GIVEN}"]
)
def test_a_call_that_is_not_sampled_or_says_no_trace_is_left_as_it_is(tmp_path, given_):
    head = {"traceparent": given_}
    assert made(tmp_path, sample=1.0).begin(head) is None
    assert head == {"traceparent": given_}


def test_a_trace_is_begun_for_a_share_of_those_without_one(tmp_path):
    assert made(tmp_path).begin({}) is None
    some = made(tmp_path, sample=0.25)
    begun = [trace for _ in range(4000) if (trace := some.begin({})) is not None]
    assert 800 < len(begun) < 1200
    assert {trace.parent for trace in begun} == {""}
    assert len({trace.id for trace in begun}) == len({trace.span for trace in begun}) == len(begun)


def test_spans_of_a_call(tmp_path):
    made_ = made(tmp_path)
    trace = made_.begin({"traceparent": GIVEN})
    made_.add(trace, 1000.0, 0.1, 0.01, (0.01, 0.04, 0.06, 0.07), {"status": 200, "deployment": "digits"})
    spans = spans_of(made_.taken())
    assert {span["traceId"] for span in spans.values()} == {ID}
    parents = {name: span["parentSpanId"] for name, span in spans.items()}
    call, replica = trace.span, spans["replica"]["spanId"]
    assert parents == {
        "call": SPAN,
        "gateway": call,
        "replica": call,
        **dict.fromkeys(("decode", "queue", "compute", "encode"), replica),
    }
    assert len({span["spanId"] for span in spans.values()}) == 7
    # 90 ms from the sending to the answer, of which 70 in the replica: 10 there and 10 back
    assert {name: stretch(span) for name, span in spans.items()} == {
        name: pytest.approx(times, abs=1e-6)
        for name, times in {
            "call": (1000.0, 1000.1),
            "gateway": (1000.0, 1000.01),
            "replica": (1000.01, 1000.1),
            "decode": (1000.02, 1000.03),
            "queue": (1000.03, 1000.06),
            "compute": (1000.06, 1000.08),
            "encode": (1000.08, 1000.09),
        }.items()
    }
    assert {"key": "modelyard.deployment", "value": {"stringValue": "digits"}} in spans["call"]["attributes"]
    assert made_.taken() == []


def test_a_call_that_no_replica_saw_or_that_failed(tmp_path):
    made_ = made(tmp_path)
    made_.add(made_.begin({"traceparent": GIVEN}), 1000.0, 0.1, 0.0, None, {"status": 429})
    spans = spans_of(made_.taken())
    assert (sorted(spans), "status" in spans["call"]) == (["call", "gateway"], False)
    made_.add(made_.begin({"traceparent": GIVEN}), 1000.0, 0.1, 0.01, None, {"status": 503})
    spans = spans_of(made_.taken())
    assert (sorted(spans), spans["call"]["status"]) == (["call", "gateway", "replica"], {"code": 2})


@given(st.lists(st.floats(), min_size=4, max_size=4), st.floats(0, 100))
def test_steps_lie_in_the_call_and_in_order_whatever_a_replica_says(times, room):
    moments = [moment for step in within(times, room) for moment in step]
    assert all(0 <= moment <= room and math.isfinite(moment) for moment in moments)
    assert moments == sorted(moments)


def test_lines_are_kept_up_to_a_size_and_a_number(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "LARGEST", 10_000)
    made_, file = made(tmp_path), tmp_path / "logs" / "spans.jsonl"
    for _ in range(40):
        for _ in range(10):
            made_.add(made_.begin({"traceparent": GIVEN}), 1000.0, 0.1, 0.0, None, {"status": 200})
        made_.write(made_.taken())
    assert sorted(path.name for path in file.parent.iterdir()) == ["spans.1.jsonl", "spans.jsonl"]
    assert all(path.stat().st_size < 20_000 for path in file.parent.iterdir())
    assert all("resourceSpans" in json.loads(line) for line in file.read_text().splitlines())
    for _ in range(traces.MOST + 10):
        made_.add(made_.begin({"traceparent": GIVEN}), 1000.0, 0.1, 0.0, None, {"status": 200})
    assert len(made_.taken()) == traces.MOST


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "logs").write_text("no folder")
    made(tmp_path).write([{}])
