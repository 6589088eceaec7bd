"""Logs are JSON lines that name their process; metrics have our prefix; libraries are told not to phone home."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys

import pytest
import structlog

from modelyard import metrics, telemetry


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch):
    """The log of process 'control', read back."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for name in telemetry.QUIET:
        monkeypatch.delenv(name, raising=False)
    telemetry.configure("control", "info")
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_a_line_says_what_where_and_when(lines):
    telemetry.log("modelyard.jobs.scheduler").info("claimed", job="j1")
    (line,) = lines()
    assert line["event"] == "claimed"
    assert line["job"] == "j1"
    assert (line["process"], line["pid"], line["module"], line["level"]) == (
        "control",
        os.getpid(),
        "modelyard.jobs.scheduler",
        "info",
    )
    assert line["timestamp"].endswith("Z")


def test_less_severe_lines_are_left_out(lines):
    log = telemetry.log("x")
    log.debug("nothing")
    log.warning("something")
    assert [line["event"] for line in lines()] == ["something"]


def test_an_exception_is_one_line(lines):
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        telemetry.log("x").error("failed", exc_info=error)
    (line,) = lines()
    assert "ValueError: first\nsecond" in line["exception"]


def test_a_logger_made_before_configuring_follows(monkeypatch: pytest.MonkeyPatch):
    early = telemetry.log("early")
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    telemetry.configure("gateway")
    early.info("late")
    assert json.loads(stream.getvalue())["process"] == "gateway"
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_libraries_are_told_not_to_phone_home(lines):
    assert telemetry.QUIET.items() <= os.environ.items()


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@pytest.mark.parametrize("head", [f"00-{TRACE}-{PARENT}-01", f"cc-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-00-what-comes"])
def test_a_request_s_trace_is_told_by_the_standard_s_header(head):
    assert telemetry.asked_by({"traceparent": head}) == {"trace": TRACE}


def test_a_traceparent_says_its_parent_and_whether_it_is_sampled():
    assert telemetry.parent_of(f"00-{TRACE}-{PARENT}-01") == (TRACE, PARENT, True)
    assert telemetry.parent_of(f"00-{TRACE}-{PARENT}-02") == (TRACE, PARENT, False)
    assert telemetry.parent_of("00-1") is None


@pytest.mark.parametrize(
    "head",
    [
        "",
        TRACE,
        f"00-{TRACE}-{PARENT}",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"cc-{TRACE}-{PARENT}-01.more",
        f"00-{TRACE}-{PARENT}-01\n",
    ],
)
def test_what_is_no_traceparent_is_left_out(head):
    assert telemetry.asked_by({"traceparent": head, "x-request-id": "mine"}) == {"call": "mine"}


def test_what_is_bound_is_on_every_line_of_the_task(lines):
    telemetry.bind({"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"})
    telemetry.log("x").info("something")
    (line,) = lines()
    assert (line["call"], line["trace"]) == ("mine", TRACE)


def test_metrics_are_exposed_in_prometheus_text():
    metrics.UNEXPECTED.labels("a-test").inc()
    text = metrics.exposition().decode()
    assert re.search(r'^modelyard_unexpected_errors_total\{process="a-test"\} 1\.0$', text, re.MULTILINE)


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_lines_and_ends_nothing(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    telemetry.configure("control", "info")
    telemetry.log("modelyard.jobs.scheduler").info("claimed", job="j1")
