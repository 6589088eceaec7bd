"""Logs, metrics and the trace of a request for every process. Logs are one JSON object a line on stderr, never a request's
content; metrics carry the prefix `modelyard_` and bounded labels only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import NamedTuple, TextIO, cast

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

from modelyard import QUIET as QUIET

UNEXPECTED = Counter("modelyard_unexpected_errors_total", "Exceptions nobody expected, by process.", ["process"])

__all__ = [
    "QUIET",
    "UNEXPECTED",
    "Counter",
    "Gauge",
    "Histogram",
    "Parent",
    "asked_by",
    "bind",
    "configure",
    "exposition",
    "log",
    "parent_of",
]
# Version 00 ends with its flags; a later one may say more behind a dash.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:(?<!^00.{53})-.*)?"
)


def configure(process: str, level: str = "info") -> None:
    """Set up logging for a process; `process` (gateway, control, …) is on every line."""
    os.environ.update(QUIET)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process, pid=os.getpid())


class _Lossy:
    """A stream that drops what it cannot write: a log on a full disk must not end what it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def log(name: str) -> structlog.BoundLogger:
    """A logger that names its module."""
    return cast(structlog.BoundLogger, structlog.get_logger(module=name))


class Parent(NamedTuple):
    """What a traceparent says: the trace, the span in it that the request came from, and whether its spans are wanted."""

    trace: str
    span: str
    sampled: bool


def parent_of(traceparent: str) -> Parent | None:
    """None for what is no such header."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return None if found is None else Parent(found[1], found[2], bool(int(found[3], 16) & 1))


def asked_by(head: Mapping[str, str]) -> dict[str, str]:
    """What log lines say of the request with these headers, where it has them: `call`, its x-request-id, and `trace`, the trace
    id of its traceparent (W3C Trace Context, level 1). What is no such header is left out, as the standard asks."""
    said = {"call": head["x-request-id"][:128]} if "x-request-id" in head else {}
    parent = parent_of(head["traceparent"]) if "traceparent" in head else None
    return said | {"trace": parent.trace} if parent else said


def bind(head: Mapping[str, str]) -> None:
    """Put that on every line of this task, and of the threads it starts."""
    structlog.contextvars.bind_contextvars(**asked_by(head))


def exposition() -> bytes:
    """This process's metrics in Prometheus text format."""
    return generate_latest(REGISTRY)
