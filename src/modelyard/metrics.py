"""Metrics of a process: they carry the prefix `modelyard_` and bounded labels only."""

from __future__ import annotations

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, generate_latest

__all__ = ["UNEXPECTED", "Counter", "Gauge", "Histogram", "exposition"]
UNEXPECTED = Counter("modelyard_unexpected_errors_total", "Exceptions nobody expected, by process.", ["process"])


def exposition() -> bytes:
    """This process's metrics in Prometheus text format."""
    return generate_latest(REGISTRY)
