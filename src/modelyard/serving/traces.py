"""Traces of calls: which are sampled, what their spans are, and the file that keeps them.

A sampled call's replica tells with its END how long each step took; the gateway, which alone knows the caller's trace, makes
spans of that and writes them, a line a call, in OTLP's own JSON, which OpenTelemetry's collector reads as it is. A call that is
not sampled pays for one look at its headers.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from modelyard import __version__
from modelyard.telemetry import parent_of

MOST = 4096  # calls between two writes; what is more is left out
LARGEST = 64 << 20  # bytes of the file; then it becomes the one before
_SERVER, _INTERNAL, _FAILED = 2, 1, 2
# The steps in a replica, each up to the moment that it tells.
_STEPS = ("decode", "queue", "compute", "encode")
_SAMPLED = frozenset("13579bdf")  # how the flags of a sampled traceparent end


class Trace:
    """A sampled call: its trace, the span of the caller it belongs to, if any, and its own. `sent` is when it went to a
    replica, by the clock of its connection."""

    __slots__ = ("id", "parent", "sent", "span")

    def __init__(self, trace: str, parent: str) -> None:
        self.id, self.parent, self.span, self.sent = trace, parent, secrets.token_hex(8), 0.0

    @property
    def header(self) -> str:
        """The traceparent of what this call leads to."""
        return f"00-{self.id}-{self.span}-01"


def is_sampled(head: Mapping[str, str]) -> bool:
    """Whether the spans of a call with these headers are wanted."""
    return "traceparent" in head and head["traceparent"][54:55] in _SAMPLED


class Traces:
    """Those of one gateway. `sample`: the share of the calls without a traceparent for which one is begun."""

    def __init__(self, file: Path, sample: float) -> None:
        self.sample, self._file = sample, file
        self._lines: list[dict[str, Any]] = []

    def begin(self, head: dict[str, str]) -> Trace | None:
        """The trace of a request with this head, which says so from then on; None where it is not sampled."""
        came = head.get("traceparent")
        if came is None:
            trace = Trace(secrets.token_hex(16), "") if random.random() < self.sample else None  # noqa: S311 - no secret
        else:
            parent = parent_of(came) if is_sampled(head) else None
            trace = None if parent is None else Trace(parent.trace, parent.span)
        if trace is not None:
            head["traceparent"] = trace.header
        return trace

    def add(
        self, trace: Trace, began: float, seconds: float, sent: float, times: Sequence[float] | None, about: Mapping[str, Any]
    ) -> None:
        """A call that was answered `seconds` after it `began`, a time.time(), and went to its replica after `sent` of them (0:
        it did not); `times` is what the replica told. `about` are attributes; its 'status' that of HTTP."""
        if len(self._lines) < MOST:
            self._lines.append(_request(_spans(trace, began, seconds, sent, times, about)))

    def taken(self) -> list[dict[str, Any]]:
        """What is to be written, once."""
        lines, self._lines = self._lines, []
        return lines

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines to the file; called from a thread. What cannot be written is dropped."""
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._file.exists() and self._file.stat().st_size > LARGEST:
                self._file.replace(self._file.with_suffix(".1.jsonl"))
            with self._file.open("ab") as file:
                file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def _spans(
    trace: Trace, began: float, seconds: float, sent: float, times: Sequence[float] | None, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    call = _span(trace, trace.span, trace.parent, "call", began, seconds)
    call |= {"kind": _SERVER, "attributes": [_attribute(*item) for item in about.items()]}
    if int(about["status"]) >= 500:
        call["status"] = {"code": _FAILED}
    spans = [call, _span(trace, secrets.token_hex(8), trace.span, "gateway", began, sent or seconds)]
    if sent:
        replica = secrets.token_hex(8)
        spans.append(_span(trace, replica, trace.span, "replica", began + sent, seconds - sent))
        steps = within(times, seconds - sent) if times else []
        for name, (start, end) in zip(_STEPS, steps, strict=False):
            spans.append(_span(trace, secrets.token_hex(8), replica, name, began + sent + start, end - start))
    return spans


def within(times: Sequence[float], room: float) -> list[tuple[float, float]]:
    """A replica's steps, (start, end) in seconds since the call was sent, `room` seconds before its answer came. No clock is
    compared: the way there and the way back are taken for equally long. What cannot be is bent: replicas run users' code."""
    last = times[-1] if math.isfinite(times[-1]) else room
    at = away = min(room, max(0.0, room - last)) / 2
    found = []
    for moment in times:
        start, at = at, min(room, max(at, away + moment)) if math.isfinite(moment) else at
        found.append((start, at))
    return found


def _span(trace: Trace, span: str, parent: str, name: str, start: float, seconds: float) -> dict[str, Any]:
    return {
        "traceId": trace.id,
        "spanId": span,
        "parentSpanId": parent,
        "name": name,
        "kind": _INTERNAL,
        "startTimeUnixNano": str(round(start * 1e9)),
        "endTimeUnixNano": str(round((start + seconds) * 1e9)),
    }


def _attribute(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, int):
        return {"key": f"modelyard.{name}", "value": {"intValue": str(value)}}
    return {"key": f"modelyard.{name}", "value": {"stringValue": str(value)}}


def _request(spans: list[dict[str, Any]]) -> dict[str, Any]:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "modelyard"}}]}
    scoped = {"scope": {"name": "modelyard.serving", "version": __version__}, "spans": spans}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scoped]}]}
