"""What keys, quotas and metering cost a call: alone, over a million calls of the path that the gateway takes, and end to end.

Alone: `Gateway.admit` with its cache, its expiry and a quota on each key and on the project, then `Gateway.settle` with the
mapped slot and the metrics' cell, while the settling thread books what they count into a real database; no sockets, no replica.
End to end: two gateways before the same replica, one as it is, one whose admission is constant and which counts nothing, under
wrk by turns.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import models
import numpy as np
import ours
import protocols
from record import HERE, Record, cpu_of, data_folder, median, recording
from rivals import free_ports
from wrk import needs_wrk, wrk

from modelyard.app import migrate
from modelyard.client import Yard
from modelyard.db import Database
from modelyard.serving import settlement
from modelyard.serving.follower import State
from modelyard.serving.frames import Usage
from modelyard.serving.gateway import Admission, Credentials, Gateway
from modelyard.serving.meter import Meters
from modelyard.serving.router import Router
from modelyard.serving.types import DeploymentState, Endpoint, Route
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRecord, KeyRing, digest, mint
from modelyard.tenancy.ledger import usage
from modelyard.tenancy.quota import Quota
from modelyard.tenancy.types import DEFAULT_PROJECT, Scope
from modelyard.testing import yard

MOST = 10.0  # µs a call
KEYS, DEPLOYMENTS = 64, 4
PACE = 30_000  # calls a second by the clock that admissions expire by: a busy gateway's
CONNECTIONS = 32
QUOTA = Quota(ours.PLENTY, int(ours.PLENTY))  # of each key and of the project: so much that no call is refused


def main() -> None:
    needs_wrk("metering.py")
    with recording("metering", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        calls, rounds, seconds = (100_000, 2, 1) if record.quick else (1_000_000, 8, 3)
        record.parameters = {
            "calls": calls, "keys": KEYS, "deployments": DEPLOYMENTS, "calls a second by the clock": PACE, "rounds": rounds,
            "seconds": seconds, "connections": CONNECTIONS,
        }  # fmt: skip
        alone(record, Path(folder) / "alone", calls)
        with yard(Path(folder) / "yard") as platform:
            end_to_end(record, platform, Path(folder), rounds, seconds)


def alone(record: Record, folder: Path, calls: int) -> None:
    """Processor time of the whole process, the settling thread included, less that of a loop that only makes the requests."""
    with gateway(folder) as (asked, tokens, database):
        way = Way(asked, tokens)
        way.run(1000)  # every slot is there
        empty = way.idle(calls)
        each = [1e6 * (way.run(calls // 10) - empty / 10) / (calls // 10) for _ in range(10)]
        record.figure("alone: keys, quotas and metering", sum(each) / len(each), "µs a call", most=MOST, each=each)
        admit, settle = way.parts(calls // 10)
        record.figure("alone: of which admitting", admit, "µs a call")
        record.figure("alone: of which counting", settle, "µs a call")
        time.sleep(1.5)  # the settling thread looks twice a second
        with database.read() as session:
            booked = sum(row["calls"] for row in usage(session, DEFAULT_PROJECT))
        record.figure("alone: calls in the ledger - calls", booked - way.made, "calls", least=0, most=0)


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[tuple[Gateway, list[str], Database]]:
    """A gateway with many keys and some deployments, over a database of its own; nothing listens and nothing is sent. Every key
    and the project have a quota."""
    settings = Settings(data=folder)
    migrate.run(settings)
    pepper, database, loop = migrate.pepper(settings), Database(settings.database_url), asyncio.new_event_loop()
    minted = [mint() for _ in range(KEYS)]
    records = [KeyRecord(name, DEFAULT_PROJECT, Scope.infer, digest(pepper, secret), quota=QUOTA) for name, secret, _ in minted]
    routes = [
        Route(
            DEFAULT_PROJECT, f"m{n}", f"m{n}", "1", DeploymentState.ready, (Endpoint(f"t{n}", str(folder / f"{n}.sock")),), {}
        )
        for n in range(DEPLOYMENTS)
    ]
    bound = [partial(verb, database) for verb in (settlement.settle, settlement.settled, settlement.forget)]
    router, meters = Router(loop), Meters(settings.run / "meters", *bound)
    try:
        meters.start()
        asked = Gateway(KeyRing(pepper), (), router, meters, settings)
        asked.apply(State(1, records, routes, {DEFAULT_PROJECT: QUOTA}))
        yield asked, [text for _, _, text in minted], database
    finally:
        meters.stop()
        router.close()
        loop.run_until_complete(asyncio.sleep(0))  # the attempts to connect end
        loop.close()
        database.close()


class Way:
    """The way of a call. Requests are cut out of bytes anew each time, as a parser does: a fresh object has no hash yet."""

    def __init__(self, gateway: Gateway, tokens: list[str]) -> None:
        self._gateway, self.made = gateway, 0
        self._urls = [f"/v2/models/m{n}/infer ".encode() for n in range(DEPLOYMENTS)]
        self._keys = [f"authorization Bearer {token}".encode() for token in tokens]
        self._began = time.time()

    def request(self, number: int) -> tuple[bytes, Credentials, float]:
        key = self._keys[number % KEYS]
        time.time()  # the gateway reads the clock, which here only paces
        return self._urls[number % DEPLOYMENTS][:-1], ((key[:13], key[14:]),), self._began + number / PACE

    def idle(self, calls: int) -> float:
        """Processor seconds of making the requests."""
        started = time.process_time()
        for number in range(calls):
            self.request(number)
        return time.process_time() - started

    def run(self, calls: int) -> float:
        """Processor seconds of making, admitting and counting them."""
        admit, settle, used = self._gateway.admit, self._gateway.settle, Usage(1, 25)
        started = time.process_time()
        for number in range(self.made, self.made + calls):
            admission = admit(*self.request(number))
            assert admission is not None
            settle(admission, used, 200, 120, 90, 0.001)
        self.made += calls
        return time.process_time() - started

    def parts(self, calls: int) -> tuple[float, float]:
        """µs a call of admitting, and of counting, on this thread."""
        requests = [self.request(number) for number in range(self.made, self.made + calls)]
        used, admissions = Usage(1, 25), list[Admission | None]()
        started = time.thread_time()
        for request in requests:
            admissions.append(self._gateway.admit(*request))
        admitted = time.thread_time()
        for admission in admissions:
            assert admission is not None
            self._gateway.settle(admission, used, 200, 120, 90, 0.001)
        ended = time.thread_time()
        self.made += calls
        return 1e6 * (admitted - started) / calls, 1e6 * (ended - admitted) / calls


def end_to_end(record: Record, platform: Yard, folder: Path, rounds: int, seconds: int) -> None:
    """Processor time a call of both gateways' processes, by turns, first and last changing places."""
    platform.import_model("tiny", models.tiny(folder / "tiny.onnx"))
    platform.deploy("tiny", "tiny")
    protocol = protocols.oip("vector", "tiny", name="x")
    bodies = [protocol.body(row) for row in np.random.default_rng(1).normal(size=(1024, 10)).astype(np.float32)]
    headers = {**protocol.headers, "Authorization": f"Bearer {ours.limited(platform)}"}
    spent: dict[str, list[float]] = {"metered": [], "bare": []}
    sent = 0
    with beside(platform, "metered") as metered, beside(platform, "bare") as bare:
        both = {"metered": metered, "bare": bare}
        for turn in range(-1, rounds):  # the first warms up
            for kind in ("metered", "bare") if turn % 2 else ("bare", "metered"):
                url, pid = both[kind]
                before = cpu_of([pid])
                said = wrk(url, protocol.path, headers, bodies, connections=CONNECTIONS, seconds=seconds)
                assert not said["errors"] + said["refused"], said
                sent += said["requests"] if kind == "metered" else 0
                if turn >= 0:
                    spent[kind].append(1e6 * (cpu_of([pid]) - before) / said["requests"])
                    print(f"   {kind}: {spent[kind][-1]:.2f} µs a call", flush=True)
        time.sleep(1.0)
        booked = ours.settled(platform, sent)
    differences = [with_ - without for with_, without in zip(spent["metered"], spent["bare"], strict=True)]
    record.figure("end to end: gateway, metered", median(spent["metered"]), "µs a call", each=spent["metered"])
    record.figure("end to end: gateway, bare", median(spent["bare"]), "µs a call", each=spent["bare"])
    record.figure("end to end: difference", median(differences), "µs a call", most=MOST, each=differences)
    left = (rounds + 1) * CONNECTIONS
    record.figure("end to end: calls in the ledger - answers of the metered", booked - sent, "calls", least=0, most=left)


@contextlib.contextmanager
def beside(platform: Yard, kind: str) -> Iterator[tuple[str, int]]:
    """Another gateway on the platform's data folder: its URL and pid."""
    port, environment = free_ports(1), {name: v for name, v in os.environ.items() if not name.startswith("MODELYARD_")}
    command = [sys.executable, str(HERE / "peers" / "gateway.py"), str(data_folder(platform)), str(port), kind]
    with subprocess.Popen(command, env=environment) as process:
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 30
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                        break
                if time.monotonic() > deadline or process.poll() is not None:
                    raise RuntimeError(f"the {kind} gateway did not start")
                time.sleep(0.1)
            yield url, process.pid
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
