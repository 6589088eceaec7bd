"""Runs a gateway process: everything wired on one event loop, from the first look at the database to the last settlement.

`app` calls `run` with what only it knows: how to read keys and routes, and how to write usage.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import uvicorn
import uvloop

from modelyard.jobs import confine
from modelyard.metrics import UNEXPECTED
from modelyard.plugins import load
from modelyard.serving.admission import Credentials
from modelyard.serving.follower import Follower, State
from modelyard.serving.front import Front
from modelyard.serving.gateway import Gateway
from modelyard.serving.http import InferenceProtocol
from modelyard.serving.meter import Counters, Meters, Settlement
from modelyard.serving.relay import Relay
from modelyard.serving.router import Router
from modelyard.serving.stats import keep_loaded
from modelyard.serving.traces import Traces
from modelyard.serving.types import Route, Seen
from modelyard.settings import Settings
from modelyard.telemetry import log
from modelyard.tenancy.access import KeyRing

HURRY = 0.04  # seconds between looks while calls wait for a deployment to wake
CHECK = 0.5  # seconds between looks at deadlines, replicas and idle connections
_log = log(__name__)
DRAIN = 30  # seconds calls under way have when the gateway is asked to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A gateway's view of the database. Called from threads. `load` and `revision` as `Follower` wants them; `settle`,
    `settled` and `forget` as `Meters` does; `observe` keeps what was seen of releases on trial; `distrust` has replicas
    replaced (why, by token)."""

    load: Callable[[], State]
    revision: Callable[[], int]
    settle: Callable[[Sequence[Settlement]], None]
    settled: Callable[[str], Mapping[int, Counters]]
    forget: Callable[[str], None]
    observe: Callable[[Sequence[Seen]], None]
    distrust: Callable[[Mapping[str, str]], None]


def run(settings: Settings, pepper: bytes, books: Books, listener: socket.socket) -> None:
    """Run a gateway on a listening socket until SIGTERM or SIGINT, on the main thread. Returns when the calls under way are
    answered and their usage is settled."""
    with listener:
        uvloop.run(serve(settings, pepper, books, listener))


async def serve(settings: Settings, pepper: bytes, books: Books, listener: socket.socket) -> None:
    """As `run`, on the running loop."""
    loop = asyncio.get_running_loop()
    router = Router(loop, settings.identity)
    meters = Meters(settings.run / "meters", books.settle, books.settled, books.forget)
    gateway = Gateway(KeyRing(pepper), (), router, meters, settings)
    follower = Follower(loop, books.load, books.revision, gateway.apply)
    gateway.follow(follower)
    relay = Relay(settings.run / "control.sock")
    gateway.heed(lambda: relay.age)
    wakes = set[asyncio.Task[None]]()

    def wake(route: Route, credentials: Credentials) -> None:
        task = loop.create_task(relay.wake(route.deployment, credentials))
        wakes.add(task)
        task.add_done_callback(wakes.discard)

    gateway.sleepers.waker = wake
    server = uvicorn.Server(_config(gateway, relay))
    if threading.current_thread() is threading.main_thread():
        # uvicorn hands the signal on when it is done; it must find a handler, or it would end the process before we settle.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _end, server)
    follower.start()
    meters.start()
    await asyncio.sleep(0)  # what the follower found is applied before the first request
    calls = load("modelyard.serving.grpc.server:Server")(gateway) if settings.grpc else None
    if calls is not None:
        host, port = listener.getsockname()[:2]
        await calls.start(host, port + 1)
    keep_loaded()
    confine.take_turns(confine.SHORT)
    watching = (
        loop.create_task(_check(server, router, settings.call_timeout)),
        loop.create_task(relay.watch()),
        loop.create_task(_hurry(gateway)),
        loop.create_task(_tell(gateway, books)),
        loop.create_task(_keep(gateway.traces)),
    )
    try:
        await server.serve(sockets=[listener])
    finally:
        if calls is not None:
            await calls.stop(DRAIN)
        for task in watching:
            task.cancel()
        await relay.close()
        router.close()
        follower.stop()
        meters.stop()
        gateway.traces.write(gateway.traces.taken())


def _config(gateway: Gateway, relay: Relay) -> uvicorn.Config:
    protocol = type("GatewayProtocol", (InferenceProtocol,), {"gateway": gateway})
    return uvicorn.Config(
        Front(gateway, relay, lambda: relay.answers, relay.metrics),
        http=protocol,
        ws="none",
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(gateway.settings.idle_timeout) + 1,
        timeout_graceful_shutdown=DRAIN,
    )


def _end(server: uvicorn.Server) -> None:
    server.should_exit = True


async def _check(server: uvicorn.Server, router: Router, patience: float) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK)
        router.check(time.time())
        for connection in list(server.server_state.connections):
            if isinstance(connection, InferenceProtocol):
                connection.sweep(loop.time(), patience)


async def _hurry(gateway: Gateway) -> None:
    """While a call waits for its deployment to wake, look at the database often."""
    while True:
        await asyncio.sleep(HURRY)
        if gateway.sleepers.any:
            gateway.look_after_sleepers()
            gateway.refresh(lambda seen: None)


async def _tell(gateway: Gateway, books: Books) -> None:
    """Write down what is seen of releases on trial, and of replicas that say what none says."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK)
        seen, distrusted = gateway.observed(), gateway.router.distrusted
        try:
            if seen:
                await loop.run_in_executor(None, books.observe, seen)
            if distrusted:
                told = dict(distrusted)
                await loop.run_in_executor(None, books.distrust, told)
                for token in told:
                    del distrusted[token]
        except Exception as error:  # noqa: BLE001 - the edge of a task: they are totals, the next ones hold these
            UNEXPECTED.labels("gateway").inc()
            _log.warning("observations not written", error=repr(error)[:300])


async def _keep(traces: Traces) -> None:
    """Write down the spans of sampled calls."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(CHECK)
        if lines := traces.taken():
            await loop.run_in_executor(None, traces.write, lines)
