"""Logs and the trace of a request for every process. Logs are one JSON object a line on stderr, never a request's content.

What they are written by, structlog, is loaded with a process's first line: it takes a seventh of the time in which a replica
starts, which has seldom anything to say.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO, cast

from modelyard import QUIET as QUIET

if TYPE_CHECKING:
    import structlog

__all__ = [
    "QUIET",
    "Parent",
    "asked_by",
    "bind",
    "configure",
    "log",
    "parent_of",
]
# Version 00 ends with its flags; a later one may say more behind a dash.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-((?!0{16})[0-9a-f]{16})-([0-9a-f]{2})(?:(?<!^00.{53})-.*)?"
)


@dataclass(slots=True)
class _Settings:
    """What `configure` was told, and where lines went then."""

    process: str = ""
    level: str = "info"
    stream: TextIO | None = None


_settings = _Settings()


def configure(process: str, level: str = "info") -> None:
    """Set up logging for a process; `process` (gateway, control, …) is on every line."""
    os.environ.update(QUIET)
    _settings.process, _settings.level, _settings.stream = process, level, sys.stderr
    _structlog.cache_clear()


@cache
def _structlog() -> Any:
    """The library, set up for this process."""
    import structlog

    if not _settings.process:  # as it comes: a test, a notebook
        return structlog
    named = {"process": _settings.process, "pid": os.getpid()}

    def name(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**event, **named}

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            name,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, _settings.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(cast(TextIO, _Lossy(_settings.stream or sys.stderr))),
    )
    return structlog


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


class _Log:
    """A logger that is made with its first line, as the process is then set up."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, method: str) -> Any:
        return getattr(_structlog().get_logger(module=self._name), method)


def log(name: str) -> structlog.BoundLogger:
    """A logger that names its module."""
    return cast("structlog.BoundLogger", _Log(name))


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
    _structlog().contextvars.bind_contextvars(**asked_by(head))
