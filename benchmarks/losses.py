"""Calls under `kill -9`: at 70 % of what two replicas can take, one of them, chosen by chance, is killed every ten seconds.

Every call arrives by an open loop and must be answered 200; the ledger must hold each of them once. Answers are compared with
onnxruntime's, one in fifty.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path

import models
import numpy as np
import ours
import protocols
from load import Load, requests, run
from record import Record, recording

from modelyard.client import Yard
from modelyard.testing import yard

SHARE = 0.7
EVERY = 10.0  # seconds between kills
REPLICAS = 2
BODIES = 1000
CONNECTIONS = 32  # of the closed loop that finds the capacity
OPEN = 2000
CHECK = 50


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, help="of load (default: 10)")


def main() -> None:
    with recording("losses", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        minutes, short = record.given.minutes or (0.5 if record.quick else 10), 3 if record.quick else 15
        record.parameters = {
            "minutes": minutes, "replicas": REPLICAS, "share_of_capacity": SHARE, "kill_every_seconds": EVERY, "bodies": BODIES,
        }  # fmt: skip
        model = models.tiny(Path(folder) / "tiny.onnx")
        with yard(Path(folder) / "yard") as platform:
            platform.import_model("tiny", model)
            ours.deployed(platform, "tiny", "tiny", REPLICAS)
            protocol, samples = protocols.asked("tiny", (10,), BODIES)
            (expected,) = models.session_of(model).run(None, {"x": samples})
            key = ours.limited(platform)
            calls = requests(platform.profile.url, protocol.path, protocol.headers, key, map(protocol.body, samples))
            closed = run(platform.profile.url, calls, connections=CONNECTIONS, seconds=short)
            record.figure("capacity, closed loop", closed.rate, "1/s")
            counted = ours.settled(platform, closed.sent)
            under_fire(record, platform, calls, expected[:, 0], SHARE * closed.rate, 60 * minutes, counted)


def under_fire(
    record: Record, platform: Yard, calls: list[bytes], expected: np.ndarray, rate: float, seconds: float, counted: int
) -> None:
    """`counted`: calls that are in the ledger already."""
    url = platform.profile.url
    killed = skipped = 0
    with Load(url, calls, rate=rate, connections=OPEN, seconds=seconds, expected=expected.tolist(), check=CHECK) as load:
        over = time.monotonic() + seconds
        chance = random.Random(3)
        while time.monotonic() + EVERY < over:
            time.sleep(EVERY)
            if kill(platform, chance):
                killed += 1
            else:
                skipped += 1
            print(f"   {over - time.monotonic():.0f} s left, {killed} killed, {skipped} skipped", flush=True)
        told = load.wait()
    booked = ours.settled(platform, counted + told.sent) - counted
    errors = sum(row["errors"] for row in platform.usage() if row["kind"] == "serving")
    times = told.latency()
    statuses = {status: count for found in told.statuses.values() for status, count in found.items()}
    record.figure("replicas killed", killed, "replicas", least=max(1.0, 0.95 * (seconds / EVERY - 1)))
    record.figure("kills skipped since one replica alone served", skipped, "kills", most=0.05 * seconds / EVERY)
    record.figure("calls", told.sent, "calls", rate=told.sent / told.seconds, statuses=statuses, lag_ms=1e3 * told.lag)
    record.figure("calls lost or answered with an error", told.sent - told.answers(), "calls", most=0, lost=told.lost)
    record.figure("calls never sent for want of a connection", told.unsent, "calls", most=0)
    record.figure("wrong answers", told.wrong, "calls", most=0, compared=told.checked)
    record.figure("calls in the ledger - calls sent", booked - told.sent + told.unsent, "calls", least=0, most=0)
    record.figure("calls in the ledger as errors", errors, "calls", most=0)
    record.figure("p50", 1e3 * times.quantile(0.5), "ms")
    record.figure("p99", 1e3 * times.quantile(0.99), "ms", p999=1e3 * times.quantile(0.999))


def kill(platform: Yard, chance: random.Random) -> bool:
    """End one of the replicas at once; False where only one serves yet, since then nobody could answer."""
    if ours.serving(platform, "tiny") < REPLICAS:
        return False
    os.kill(chance.choice(ours.replicas(platform)), signal.SIGKILL)
    return True


if __name__ == "__main__":
    main()
