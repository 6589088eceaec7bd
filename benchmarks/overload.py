"""Three times more calls than a model can answer: as many answered as without the flood, each of them soon, the rest refused.

A model whose batches gain nothing, so that its capacity is one over its time, measured by a closed loop; then constant
arrivals at three times that, latency from the moment each call was meant to start. The same generator loads both.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import models
import ours
import protocols
from load import Told, requests, run
from record import Record, recording

from modelyard.client import Yard
from modelyard.testing import yard

SECONDS = 0.007  # a row, at least
TIMES = 3
BODIES = 1000
AT_ONCE = 2  # connections of the closed loop: while one is computed another waits, and none is refused for it
OPEN = 512
TARGET = 2.0  # the deployment's latency target, times what a call takes when nothing else is asked


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, help="of the flood (default: 60)")


def main() -> None:
    with recording("overload", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        flood, short = record.given.seconds or (5 if record.quick else 60), 3 if record.quick else 15
        model, took = models.slow(Path(folder) / "slow.onnx", SECONDS)
        record.parameters = {
            "model_ms": 1e3 * took, "flood_seconds": flood, "closed_seconds": short, "times": TIMES, "bodies": BODIES,
            "replicas": 1, "connections_at_most": OPEN,
        }  # fmt: skip
        record.figure("the model, one row by onnxruntime", 1e3 * took, "ms", least=5)
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("slow", model)
            # the target is set from what an unhurried call takes, and that from a deployment without one
            platform.deploy("slow", "slow")
            calls, first = asked(platform), unloaded(platform, 1 if record.quick else 3)
            record.parameters["latency_target_ms"] = aimed(platform, TARGET * first.latency().quantile(0.5))
            alone = unloaded(platform, short)
            before = run(platform.profile.url, calls, connections=AT_ONCE, seconds=short)
            told = run(platform.profile.url, calls, connections=OPEN, rate=TIMES * before.rate, seconds=flood)
            after = run(platform.profile.url, calls, connections=AT_ONCE, seconds=short)
            report(record, alone, (before, after), told)


def asked(platform: Yard) -> list[bytes]:
    protocol, samples = protocols.asked("slow", (32, 16, 16), BODIES)
    key = ours.limited(platform)
    return requests(platform.profile.url, protocol.path, protocol.headers, key, map(protocol.body, samples))


def unloaded(platform: Yard, seconds: int) -> Told:
    """One call after another."""
    return run(platform.profile.url, asked(platform), connections=1, seconds=seconds)


def aimed(platform: Yard, seconds: float) -> float:
    """Deploy with a latency target, which is returned in milliseconds."""
    platform.deploy("slow", "slow", latency_target=seconds)
    return 1e3 * seconds


def report(record: Record, alone: Told, closed: tuple[Told, Told], flood: Told) -> None:
    """Capacity is the mean of before and after the flood. Goodput is over the time until the last answer."""
    one, many = alone.latency(), flood.latency()
    capacity = sum(told.rate for told in closed) / 2
    record.figure("unloaded: p50", 1e3 * one.quantile(0.5), "ms")
    record.figure("unloaded: p99", 1e3 * one.quantile(0.99), "ms")
    record.figure("capacity, closed loop", capacity, "1/s", each=[told.rate for told in closed])
    statuses = {status: flood.answers(status) for counts in flood.statuses.values() for status in counts}
    offered = flood.sent / flood.seconds
    record.figure("flood: offered", offered, "1/s", statuses=statuses, lag_ms=1e3 * flood.lag, generator_cores=cores(flood))
    record.figure("flood: goodput / capacity", flood.rate / capacity, "×", least=0.95)
    record.figure("flood: accepted calls, p50", 1e3 * many.quantile(0.5), "ms")
    record.figure("flood: accepted calls, p99", 1e3 * many.quantile(0.99), "ms")
    record.figure("flood: p99 of accepted / unloaded p99", many.quantile(0.99) / one.quantile(0.99), "×", most=3)
    record.figure("flood: p99 of accepted / unloaded p50", many.quantile(0.99) / one.quantile(0.5), "×")
    record.figure("flood: calls lost or never sent", flood.lost + flood.unsent, "calls", most=0)
    refused = flood.refused() - flood.answers(429) - flood.answers(503)
    record.figure("flood: refusals that are neither 429 nor 503", refused, "calls", most=0)


def cores(told: Told) -> float:
    return round(told.cpu / told.seconds, 3)


if __name__ == "__main__":
    main()
