"""Large and slow beside small and quick: how another deployment's p99 is with and without them.

A small model is called 200 times a second, by constant arrivals: alone, beside bodies of 10 MB to another deployment one after
another, and beside a slow model. The neighbours are paced, so that the processors are not simply taken: what is measured is
whether anybody waits for them in a queue, a loop or a lock that is shared.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import models
import ours
import protocols
from load import Histogram, Load, requests, run
from record import Record, busy_seconds, median, recording

from modelyard.client import Yard
from modelyard.testing import yard

RATE = 200.0  # small calls a second
WIDTH = 2_500_000  # numbers: 10 MB
LARGE = 2.0  # large bodies a second, one at a time
SLOW, SECONDS = 4.0, 0.05  # slow calls a second, and what one takes
KINDS = ("alone", "beside 10 MB bodies", "beside a slow model")


@dataclass
class Neighbour:
    """`calls` at `rate` a second on at most `connections`."""

    calls: Sequence[bytes]
    rate: float
    connections: int


def main() -> None:
    with recording("isolation", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        rounds, seconds = (1, 4) if record.quick else (5, 15)
        record.parameters = {
            "rounds": rounds, "seconds": seconds, "small_rate": RATE, "large_bytes": 4 * WIDTH, "large_rate": LARGE,
            "slow_seconds": SECONDS, "slow_rate": SLOW,
        }  # fmt: skip
        work = Path(folder)
        slow, took = models.slow(work / "slow.onnx", SECONDS)
        record.figure("the slow model, one row by onnxruntime", 1e3 * took, "ms")
        made = {"small": models.tiny(work / "small.onnx"), "large": models.mean(work / "large.onnx", WIDTH), "slow": slow}
        with yard(work / "yard") as platform:
            for name, file in made.items():
                platform.import_model(name, file)
                platform.deploy(name, name)
            measure(record, platform, rounds, seconds)


def measure(record: Record, platform: Yard, rounds: int, seconds: int) -> None:
    """Rounds of all three kinds, another one first each time."""
    key = ours.limited(platform)
    small = asked(platform, key, "small", (10,), 1000)
    neighbours = {
        KINDS[0]: None,
        KINDS[1]: Neighbour(asked(platform, key, "large", (WIDTH,), 4), LARGE, 1),
        KINDS[2]: Neighbour(asked(platform, key, "slow", (32, 16, 16), 100), SLOW, 2),
    }
    run(platform.profile.url, small, rate=RATE, seconds=2)
    p99: dict[str, list[float]] = {kind: [] for kind in KINDS}
    busy: dict[str, list[float]] = {kind: [] for kind in KINDS}
    whole = {kind: Histogram() for kind in KINDS}
    lost = 0
    for turn in range(rounds):
        for kind in [*KINDS[turn % 3 :], *KINDS[: turn % 3]]:
            with contextlib.ExitStack() as stack:
                beside = neighbours[kind]
                other = beside and stack.enter_context(
                    Load(platform.profile.url, beside.calls, rate=beside.rate, connections=beside.connections)
                )
                before = busy_seconds()
                told = run(platform.profile.url, small, rate=RATE, seconds=seconds)
                busy[kind].append((busy_seconds() - before) / told.seconds)
                others = other.finish() if other else None
            p99[kind].append(1e3 * told.latency().quantile(0.99))
            whole[kind] = whole[kind].merged(told.latency())
            lost += told.lost + told.unsent + told.refused() + (others.lost + others.refused() if others else 0)
            asks = f", {others.answers() / others.seconds:.2f} answers a second of the neighbour" if others else ""
            print(f"   {kind}: p99 {p99[kind][-1]:.2f} ms, {busy[kind][-1]:.2f} cores busy{asks}", flush=True)
    for kind in KINDS:
        more = {"p50": 1e3 * whole[kind].quantile(0.5), "p999": 1e3 * whole[kind].quantile(0.999), "cores_busy": busy[kind]}
        record.figure(f"small calls, {kind}: p99", median(p99[kind]), "ms", each=p99[kind], **more)
    for kind in KINDS[1:]:
        record.figure(f"p99 {kind} / alone", median(p99[kind]) / median(p99[KINDS[0]]), "×", most=1.2)
    record.figure("calls lost or refused", lost, "calls", most=0)


def asked(platform: Yard, key: str, name: str, shape: tuple[int, ...], number: int) -> list[bytes]:
    protocol, samples = protocols.asked(name, shape, number)
    return requests(platform.profile.url, protocol.path, protocol.headers, key, map(protocol.body, samples))


if __name__ == "__main__":
    main()
