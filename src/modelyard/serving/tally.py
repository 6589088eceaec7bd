"""What replicas count of themselves, summed for Prometheus over the replicas of a deployment's version.

A replica tells its counters with every answer to HEALTH; the router passes them on. What is kept are sums of what was new in
each: a replica that ends takes nothing with it, and no counter ever goes back. Every gateway sees all of every replica.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from modelyard.serving.metrics import LABELS, Labels, cumulative
from modelyard.serving.stats import SIZES, Stats

_MOST = 10_000  # replicas remembered; the oldest are long gone
_STATES = ("ready", "draining", "silent", "lost", "connecting")


class _Told:
    """A replica: whose it is, and what it told last."""

    __slots__ = ("labels", "last")

    def __init__(self, labels: Labels) -> None:
        self.labels, self.last = labels, Stats()


class Tally:
    """The sums of one gateway. `standing` tells the state of each replica it knows."""

    def __init__(self, standing: Callable[[], Iterable[tuple[Labels, str]]]) -> None:
        self._standing = standing
        self._replicas: dict[str, _Told] = {}
        self._sums: dict[Labels, Stats] = {}

    def know(self, labels: Labels, tokens: Iterable[str]) -> None:
        """These replicas belong to that version. They stay known when they leave the routes: some still have calls."""
        for token in tokens:
            if token not in self._replicas:
                self._replicas[token] = _Told(labels)
        while len(self._replicas) > _MOST:
            del self._replicas[next(iter(self._replicas))]

    def told(self, token: str, stats: Mapping[str, Any]) -> None:
        """A replica's counters. What is no counter, or less than it was, is passed over: replicas run users' code."""
        replica = self._replicas.get(token)
        if replica is None:
            return
        total, last = self._sums.setdefault(replica.labels, Stats()), replica.last
        for name in Stats.__slots__:
            new, old = stats.get(name), getattr(last, name)
            if name == "sizes":
                if isinstance(new, list) and len(new) == len(old) and all(map(_grew, old, new)):
                    total.sizes = [have + now - before for have, now, before in zip(total.sizes, new, old, strict=True)]
                    last.sizes = list(new)
            elif _grew(old, new):
                setattr(total, name, getattr(total, name) + new - old)
                setattr(last, name, new)

    def families(self, project: str | None) -> Iterator[Metric]:
        """The metrics of one project's replicas (None: of all)."""
        counters = {
            "batches": CounterMetricFamily("modelyard_batches", "Batches computed.", labels=LABELS),
            "compute": CounterMetricFamily("modelyard_compute_seconds", "Seconds models computed.", labels=LABELS),
            "queue": CounterMetricFamily("modelyard_queue_seconds", "Seconds calls waited for a batch.", labels=LABELS),
            "units": CounterMetricFamily("modelyard_units", "Units billed.", labels=LABELS),
            "refused": CounterMetricFamily("modelyard_overloaded", "Calls replicas refused as too many.", labels=LABELS),
            "failures": CounterMetricFamily("modelyard_model_failures", "Calls that models failed.", labels=LABELS),
        }
        rows = HistogramMetricFamily("modelyard_batch_rows", "Rows of a batch.", labels=LABELS)
        for labels, total in self._sums.items():
            if project in (None, labels[0]):
                for name, family in counters.items():
                    family.add_metric(labels, getattr(total, name))
                rows.add_metric(labels, cumulative(SIZES, total.sizes), total.rows)
        replicas = GaugeMetricFamily("modelyard_replicas", "Replicas, by how they are.", labels=(*LABELS, "state"))
        states = Counter(self._standing())
        for labels in sorted({labels for labels, _ in states}):
            if project in (None, labels[0]):
                for state in _STATES:
                    replicas.add_metric((*labels, state), states[labels, state])
        yield from (*counters.values(), rows, replicas)


def _grew(old: float, new: Any) -> bool:
    """Whether a counter is one still; NaN and infinity are none."""
    return isinstance(new, int | float) and not isinstance(new, bool) and old <= new < 1e18
