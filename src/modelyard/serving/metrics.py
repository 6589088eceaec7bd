"""What the gateway measures of calls, for Prometheus. Counting a call costs a third of a microsecond: plain lists, no locks
(one thread counts), turned into metrics only when somebody scrapes: `front` then adds this process's own and control's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client.core import REGISTRY, CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector, CollectorRegistry

# Seconds: from a tiny model's answer to a long generation's.
BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Cell:
    """The calls of one deployment's version: how many by status code, how long they took, and how many were looked up among
    the answers kept, and found or not."""

    __slots__ = ("buckets", "codes", "hits", "misses", "seconds")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {200: 0}
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0
        self.hits = self.misses = 0

    def count(self, code: int, seconds: float) -> None:
        codes = self.codes
        codes[code] = codes.get(code, 0) + 1
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds


# Project, deployment, version; clients and the label call a deployment by the name they know it by: model.
Labels = tuple[str, str, str]
LABELS = ("project", "model", "version")


class CallMetrics:
    """All cells of one gateway. `depths` tells how many calls each version has at its replicas."""

    def __init__(self, depths: Callable[[], Mapping[Labels, int]]) -> None:
        self._cells: dict[Labels, Cell] = {}
        self._depths = depths
        self.refused: dict[int, int] = {}

    def cell(self, project: str, deployment: str, version: str) -> Cell:
        return self._cells.setdefault((project, deployment, version), Cell())

    def refuse(self, code: int) -> None:
        """Count a request that never became a call: no key, no such deployment, too large."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def families(self, project: str | None) -> Iterator[Metric]:
        """The metrics of one project's calls (None: of all)."""
        calls = CounterMetricFamily("modelyard_calls", "Calls answered.", labels=(*LABELS, "code"))
        seconds = HistogramMetricFamily("modelyard_call_seconds", "From the request's head to the answer.", labels=LABELS)
        hits = CounterMetricFamily("modelyard_cache_hits", "Calls answered from memory.", labels=LABELS)
        misses = CounterMetricFamily("modelyard_cache_misses", "Calls whose answer was not in memory.", labels=LABELS)
        for labels, cell in list(self._cells.items()):
            if project in (None, labels[0]):
                for code, number in list(cell.codes.items()):
                    calls.add_metric((*labels, str(code)), number)
                seconds.add_metric(labels, cumulative(BOUNDS, cell.buckets), cell.seconds)
                if cell.hits or cell.misses:
                    hits.add_metric(labels, cell.hits)
                    misses.add_metric(labels, cell.misses)
        depth = GaugeMetricFamily("modelyard_queue_depth", "Calls at the replicas.", labels=LABELS)
        for labels, number in self._depths().items():
            if project in (None, labels[0]):
                depth.add_metric(labels, number)
        refused = CounterMetricFamily("modelyard_refused", "Requests that never became a call.", labels=("code",))
        for code, number in list(self.refused.items()):
            refused.add_metric((str(code),), number)
        yield from (calls, seconds, hits, misses, depth, refused)


def exposition(calls: Iterable[Metric], control: bytes | None = None) -> bytes:
    """Prometheus text of `calls`, of this process, and of what `control` told of itself (None: it did not answer).

    A family that both processes have is told once, with the samples of both. What Python tells of a process (`process_…`,
    `python_…`) has no label to tell two apart, so it is this one's alone.
    """
    up = GaugeMetricFamily("modelyard_control_up", "Whether control told its metrics.", value=control is not None)
    families = {family.name: family for family in (*REGISTRY.collect(), *calls, up)}
    for theirs in text_string_to_metric_families((control or b"").decode()):
        if theirs.name.startswith("modelyard_") and not theirs.name.endswith("_created"):
            ours = families.setdefault(theirs.name, theirs)
            ours.samples += theirs.samples if ours is not theirs else []
    registry = CollectorRegistry()
    registry.register(_Told(families.values()))
    return generate_latest(registry)


class _Told(Collector):
    """Families as they are."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def cumulative(bounds: Iterable[float], buckets: list[int]) -> list[tuple[str, float]]:
    """A histogram's buckets as Prometheus has them: each with all below it."""
    found, total = [], 0
    for bound, number in zip((*map(str, bounds), "+Inf"), buckets, strict=True):
        total += number
        found.append((bound, float(total)))
    return found
