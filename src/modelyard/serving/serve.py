"""Runs a gateway process: everything wired on one event loop, from the first look at the database to the last settlement.

`app` calls `run` with what only it knows: how to read keys and routes, and how to write usage.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import uvicorn
import uvloop

from modelyard.plugins import load
from modelyard.serving.follower import Follower, State
from modelyard.serving.front import Front
from modelyard.serving.gateway import Gateway
from modelyard.serving.http import IDLE, InferenceProtocol
from modelyard.serving.meter import Counters, Meters, Settlement
from modelyard.serving.relay import Relay
from modelyard.serving.router import Router
from modelyard.settings import Settings
from modelyard.tenancy.access import KeyRing

CHECK = 0.5  # seconds between looks at deadlines, replicas and idle connections
DRAIN = 30  # seconds calls under way have when the gateway is asked to end


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A gateway's view of the database. Called from threads. `load` and `revision` as `Follower` wants them; `settle`,
    `settled` and `forget` as `Meters` does."""

    load: Callable[[], State]
    revision: Callable[[], int]
    settle: Callable[[Sequence[Settlement]], None]
    settled: Callable[[str], Mapping[int, Counters]]
    forget: Callable[[str], None]


def run(settings: Settings, pepper: bytes, books: Books, listener: socket.socket) -> None:
    """Run a gateway on a listening socket until SIGTERM or SIGINT, on the main thread. Returns when the calls under way are
    answered and their usage is settled."""
    with listener:
        uvloop.run(serve(settings, pepper, books, listener))


async def serve(settings: Settings, pepper: bytes, books: Books, listener: socket.socket) -> None:
    """As `run`, on the running loop."""
    loop = asyncio.get_running_loop()
    router = Router(loop)
    meters = Meters(settings.run / "meters", books.settle, books.settled, books.forget)
    gateway = Gateway(KeyRing(pepper), (), router, meters, settings)
    follower = Follower(loop, books.load, books.revision, gateway.apply)
    gateway.follow(follower)
    relay = Relay(settings.run / "control.sock")
    gateway.heed(lambda: relay.age)
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
    gc.collect()
    gc.freeze()  # what is loaded stays, and what a call makes is freed by counting: look for cycles rarely
    gc.set_threshold(50_000, 20, 50)
    watching = (loop.create_task(_check(server, router, settings.call_timeout)), loop.create_task(relay.watch()))
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
        timeout_keep_alive=int(IDLE),
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
