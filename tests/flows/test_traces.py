"""Traces on a real platform: one call, by every door, is one trace from the client through the gateway to the engine."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from opentelemetry import trace as otel
from test_releases import odd
from tritonclient.grpc import service_pb2

from modelyard.client import Yard
from modelyard.serving.grpc.server import SERVICE
from modelyard.testing import yard

X = np.ones((1, 1), np.float32)
SLOW = 0.05  # seconds a batch
SPAN = "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    folder = tmp_path_factory.mktemp("traces")
    with yard(folder / "yard", "--grpc") as made:
        odd(made, "slow", folder / "slow", f"time.sleep({SLOW})")
        made.deploy("slow", "slow", engine="torch")
        made.predict("slow", {"x": X})
        yield made


def sampled(number: int) -> tuple[str, str]:
    """A trace id and the traceparent of a client that wants its spans."""
    trace = f"{number:032x}"
    return trace, f"00-{trace}-{SPAN}-01"


def by_http(platform: Yard, traceparent: str) -> str:
    """The answer's traceparent."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
    headers = {"Authorization": f"Bearer {platform.profile.key}", "traceparent": traceparent}
    answer = httpx.post(f"{platform.profile.url}/v2/models/slow/infer", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200
    return answer.headers.get("traceparent", "")


def by_grpc(platform: Yard, traceparent: str) -> str:
    request = service_pb2.ModelInferRequest(model_name="slow", raw_input_contents=[X.tobytes()])
    request.inputs.add(name="x", datatype="FP32", shape=X.shape)
    metadata = [("authorization", f"Bearer {platform.profile.key}"), ("traceparent", traceparent)]
    with grpc.insecure_channel(f"127.0.0.1:{(httpx.URL(platform.profile.url).port or 0) + 1}") as channel:
        method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        call = method.future(request.SerializeToString(), metadata=metadata, timeout=30)
        assert call.code() == grpc.StatusCode.OK
        return str(dict(call.initial_metadata()).get("traceparent", ""))


def told(platform: Yard, trace: str) -> list[dict[str, Any]]:
    """The spans of a trace that are written, of one call."""
    file = platform.profile.file.parent / "logs" / "spans.jsonl"
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        lines = map(json.loads, file.read_text().splitlines() if file.exists() else ())
        calls = [line["resourceSpans"][0]["scopeSpans"][0]["spans"] for line in lines]
        if found := [spans for spans in calls if spans[0]["traceId"] == trace]:
            [spans] = found
            return list(spans)
        time.sleep(0.05)
    raise AssertionError("the trace was not written")


def check(spans: list[dict[str, Any]], trace: str, answered: str) -> dict[str, float]:
    """That spans are one trace, each within its parent; their seconds by name."""
    by_name = {span["name"]: span for span in spans}
    by_id = {span["spanId"]: span for span in spans}
    assert len(by_name) == len(by_id) == len(spans)
    assert {span["traceId"] for span in spans} == {trace}
    assert {name: span["parentSpanId"] for name, span in by_name.items() if span["parentSpanId"] not in by_id} == {"call": SPAN}
    named = {name: by_id[span["parentSpanId"]]["name"] for name, span in by_name.items() if name != "call"}
    steps = dict.fromkeys(("decode", "queue", "compute", "encode"), "replica")
    assert named == {"gateway": "call", "replica": "call", **steps}
    for span in spans:
        parent = by_id.get(span["parentSpanId"], span)
        moments = [int(parent["startTimeUnixNano"]), int(span["startTimeUnixNano"])]
        moments += [int(span["endTimeUnixNano"]), int(parent["endTimeUnixNano"])]
        assert all(b - a >= -2000 for a, b in itertools.pairwise(moments)), span["name"]
    assert answered == f"00-{trace}-{by_name['call']['spanId']}-01"
    return {n: (int(s["endTimeUnixNano"]) - int(s["startTimeUnixNano"])) / 1e9 for n, s in by_name.items()}


@pytest.mark.parametrize(("door", "number"), [(by_http, 1), (by_grpc, 2)])
def test_one_call_is_one_trace_from_gateway_to_engine(platform: Yard, door: Any, number: int) -> None:
    trace, traceparent = sampled(number)
    began = time.time()
    answered = door(platform, traceparent)
    took = time.time() - began
    spans = told(platform, trace)
    seconds = check(spans, trace, answered)
    assert SLOW * 0.9 < seconds["compute"] < seconds["replica"] < seconds["call"] < took
    assert seconds["queue"] + seconds["decode"] + seconds["encode"] + seconds["gateway"] < took - SLOW * 0.9
    said = {one["key"]: next(iter(one["value"].values())) for one in spans[0]["attributes"]}
    assert said["modelyard.deployment"] == "slow"
    assert (said["modelyard.status"], said["modelyard.door"]) == ("200", "grpc" if door is by_grpc else "oip")


def test_a_call_that_waits_is_seen_to_wait(platform: Yard) -> None:
    traces = [sampled(number) for number in range(40, 52)]

    def in_turn(place: int) -> str:
        time.sleep(place * SLOW / 5)  # whatever is computed together, some come while it is
        return by_http(platform, traces[place][1])

    with ThreadPoolExecutor(len(traces)) as pool:
        answers = list(pool.map(in_turn, range(len(traces))))
    waited = [check(told(platform, t), t, answered)["queue"] for (t, _), answered in zip(traces, answers, strict=True)]
    assert max(waited) > SLOW / 3  # while the first was computed, alone or with some


def test_who_is_not_sampled_is_in_no_file(platform: Yard) -> None:
    unsampled = f"00-{77:032x}-{SPAN}-00"
    assert by_http(platform, unsampled) == by_grpc(platform, unsampled) == by_http(platform, "nonsense") == ""
    trace, traceparent = sampled(20)
    by_http(platform, traceparent)
    told(platform, trace)
    text = (platform.profile.file.parent / "logs" / "spans.jsonl").read_text()
    assert f"{77:032x}" not in text


def test_the_client_goes_on_with_the_trace_it_is_in(platform: Yard) -> None:
    trace, traceparent = sampled(30)
    assert platform.predict("slow", {"x": X}, traceparent=traceparent).trace == trace
    assert told(platform, trace)[0]["parentSpanId"] == SPAN
    context = otel.SpanContext(31, int(SPAN, 16), is_remote=False, trace_flags=otel.TraceFlags(1))
    with otel.use_span(otel.NonRecordingSpan(context)):
        answer = platform.predict("slow", {"x": X})
    assert answer.trace == f"{31:032x}"
    assert told(platform, answer.trace)[0]["parentSpanId"] == SPAN
    assert platform.predict("slow", {"x": X}).trace == ""
