"""Many more deployments than fit: 200 of them, 16 in memory at a time, asked for as often as a law of Zipf says.

No call may fail, whoever has to be put to sleep or woken for it. What is warm must not suffer: the p99 of the most wanted
deployment is compared with what it is when nobody else is called. And a deployment of 100 MB that sleeps must answer its first
call within a second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import models
import numpy as np
import ours
import protocols
from load import Load, requests, run
from record import Record, median, memory_of, recording, timed

from modelyard.client import Yard
from modelyard.testing import yard

RATE = 4.0  # calls a second by Zipf's law: every seventh or so wakes somebody, which costs a good part of a second
EXPONENT = 1.3
WARM = 50.0  # calls a second to the most wanted besides, for its p99
LARGE = 100_000_000  # bytes
BODIES = 1000
TURNS = 20_000  # calls until the order begins anew


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, help="of traffic (default: 240)")


def main() -> None:
    with recording("density", __doc__ or "", options) as record, tempfile.TemporaryDirectory() as folder:
        many, most, seconds, colds = (6, 3, 8, 1) if record.quick else (200, 16, 240, 10)
        seconds = record.given.seconds or seconds
        record.parameters = {
            "deployments": many, "in_memory": most, "seconds": seconds, "rate": RATE, "warm_rate": WARM,
            "zipf_exponent": EXPONENT, "bodies": BODIES, "large_bytes": LARGE,
        }  # fmt: skip
        with yard(Path(folder) / "yard", MODELYARD_SERVING_REPLICAS=str(most)) as platform:
            platform.import_model("tiny", models.tiny(Path(folder) / "tiny.onnx"))
            platform.import_model("large", models.large(Path(folder) / "large.onnx", LARGE))
            names = [f"d{number:03}" for number in range(many)]
            took = [timed(lambda name=name: platform.deploy(name, "tiny", min_replicas=0))[0] for name in names]
            record.figure("a deployment more", median(took), "s", longest=max(took))
            key = ours.limited(platform)
            traffic(record, platform, key, names, seconds, most)
            cold(record, platform, key, colds)


# Traffic


def traffic(record: Record, platform: Yard, key: str, names: Sequence[str], seconds: int, most: int) -> None:
    """The most wanted alone, then among all, then alone again; it is called as often each time."""
    calls, labels, expected = asked(platform, key, names)
    each = len(calls) // len(names)
    weights = 1 / np.arange(1, len(names) + 1) ** EXPONENT
    wanted = np.random.default_rng(4).choice(len(names), TURNS, p=weights / weights.sum())
    turns = [name * each + number % each for number, name in enumerate(wanted.tolist())]
    more = {"labels": labels, "expected": expected, "check": 1, "connections": 512}
    first = partial(run, platform.profile.url, calls, turns=range(each), rate=WARM, **more)
    alone = [first(seconds=max(2, seconds // 4))]
    began = ours.settled(platform, alone[0].sent)
    with Load(platform.profile.url, calls, turns=turns, rate=RATE, seconds=seconds, **more) as load:
        warm = first(seconds=seconds)
        awake = len(ours.replicas(platform))
        told = load.wait()
    sent = told.sent + warm.sent
    booked = ours.settled(platform, began + sent) - began
    alone.append(first(seconds=max(2, seconds // 4)))
    failed = sum(one.sent - one.answers() for one in (told, warm, *alone))
    record.figure("calls by Zipf's law", told.sent, "calls", deployments_called=len(told.statuses), warm_calls=warm.sent)
    record.figure("calls that failed", failed, "calls", most=0, statuses=told.statuses, lost=told.lost, unsent=told.unsent)
    record.figure("wrong answers", told.wrong + warm.wrong, "calls", most=0, compared=told.checked + warm.checked)
    record.figure("calls in the ledger - calls sent", booked - sent, "calls", least=0, most=0)
    record.figure("replicas in memory", awake, "replicas", most=most)
    before, among = [1e3 * one.latency().quantile(0.99) for one in alone], 1e3 * warm.latency().quantile(0.99)
    # The quieter of both: before, the last deployments may still be on their way to sleep.
    record.figure("the most wanted, alone: p99", min(before), "ms", each=before)
    record.figure("the most wanted, among all: p99", among, "ms", p50=1e3 * warm.latency().quantile(0.5))
    record.figure("warm p99, among all / alone", among / min(before), "×", most=1.2)
    everyone = told.latency()
    record.figure("calls by Zipf's law: p50", 1e3 * everyone.quantile(0.5), "ms", p99=1e3 * everyone.quantile(0.99))


def asked(platform: Yard, key: str, names: Sequence[str]) -> tuple[list[bytes], list[str], list[float]]:
    """Requests, their deployments and the answers' first numbers: as many distinct bodies for each as make 1,000 in all."""
    each = max(5, BODIES // len(names))
    calls, labels, expected = list[bytes](), list[str](), list[float]()
    for number, name in enumerate(names):
        protocol, samples = protocols.asked(name, (10,), each, seed=number)
        calls += requests(platform.profile.url, protocol.path, protocol.headers, key, map(protocol.body, samples))
        labels += [name] * each
        with tempfile.TemporaryDirectory() as folder:
            (found,) = models.session_of(models.tiny(Path(folder) / "tiny.onnx")).run(None, {"x": samples})
        expected += found[:, 0].tolist()
    return calls, labels, expected


def cold(record: Record, platform: Yard, key: str, times: int) -> None:
    """The first call to a deployment of 100 MB that sleeps: from its request to its answer."""
    protocol, samples = protocols.asked("large", (256,), times)
    seconds = []
    for sample in samples:
        platform.deploy("large", "large", min_replicas=0, idle=1)
        asleep(platform)
        call = requests(platform.profile.url, protocol.path, protocol.headers, key, [protocol.body(sample)])
        seconds.append(run(platform.profile.url, call, connections=1, seconds=0.001).latency().quantile(0.5))
        memory = max((memory_of(pid) for pid in ours.replicas(platform)), default=0)
        platform.undeploy("large")
    record.figure(
        "100 MB: call that wakes it, to its answer", median(seconds), "s", most=1, each=seconds, replica_mb=memory / 1e6
    )


def asleep(platform: Yard, patience: float = 120.0) -> None:
    """Wait until 'large' has no replica: a deployment that nobody calls goes to sleep."""
    deadline = time.monotonic() + patience
    while platform.deployment("large")["state"] != "asleep" or platform.deployment("large")["replicas"]:
        if time.monotonic() > deadline:
            raise TimeoutError("the deployment that nobody calls does not go to sleep")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
