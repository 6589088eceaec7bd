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

from modelyard import telemetry


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


def test_trace_ids_are_fresh_and_of_the_standard_form():
    ids = {telemetry.trace_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in ids)


def test_metrics_are_exposed_in_prometheus_text():
    telemetry.UNEXPECTED.labels("a-test").inc()
    text = telemetry.exposition().decode()
    assert re.search(r'^modelyard_unexpected_errors_total\{process="a-test"\} 1\.0$', text, re.MULTILINE)


class Full(io.StringIO):
    """A stream on a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_costs_lines_and_ends_nothing(lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    telemetry.configure("control", "info")
    telemetry.log("modelyard.jobs.scheduler").info("claimed", job="j1")
