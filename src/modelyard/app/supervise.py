"""`modelyard up` and `modelyard node`: the supervisor's process. It binds the port, starts the fixed children and waits.

The listening socket is made here and handed to the gateway, so that a taken port is known before anything starts and a
restarted gateway refuses no connection. This process holds no database and no web framework.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from modelyard import telemetry
from modelyard.app.cluster import Joined, join
from modelyard.app.process import SETTINGS
from modelyard.errors import Conflict, Crashed, Invalid, from_wire
from modelyard.jobs import sandbox
from modelyard.jobs.supervisor import Supervisor, lock
from modelyard.settings import Settings

_log = telemetry.log(__name__)
# Called once the platform answers, with its URL.
Ready = Callable[[str], None]
# Called once a signal asked for the end, before anything is stopped.
Ending = Callable[[], None]
BACKLOG = 2048
PATIENCE = 60.0
_ATTEMPTS = 20  # to find a free port whose next one is free too


def up(settings: Settings, ready: Ready | None = None, ending: Ending | None = None) -> None:
    """Run the platform on this machine until SIGINT or SIGTERM; `ready(url)` is called once it answers, `ending()` once it
    was told to end.

    Raises `Conflict` where the port is taken or another `up` runs on the same folder.
    """
    telemetry.configure("supervisor", settings.log_level)
    held = lock(settings.data)
    try:
        with contextlib.ExitStack() as sockets:
            listener = bind(settings, sockets)
            if warning := sandbox.warning(settings):
                sys.stderr.write(f"{warning}\n")
            url = f"http://{_shown(settings.host)}:{listener.getsockname()[1]}"
            _prepare(settings, url)
            with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
                joined = join(settings, Path(folder))
                asyncio.run(_run(joined, listener, url, ready, ending))
    finally:
        os.close(held)


def node(settings: Settings) -> None:
    """Run a supervisor alone: what control needs beside it to start gangs and replicas."""
    telemetry.configure("supervisor", settings.log_level)
    held = lock(settings.data)
    try:
        asyncio.run(_run(Joined(settings), None, "", None, None))
    finally:
        os.close(held)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on host:port (0: a free one). Raises `Conflict` for a taken port, `Invalid` for a bad host."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except socket.gaierror as error:
        raise Invalid(f"'{host}' is no address of this machine: {error.strerror}.") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise Conflict(f"Port {port} of {host} cannot be had ({error.strerror}): choose another with --port.") from error
    return listener


def bind(settings: Settings, held: contextlib.ExitStack) -> socket.socket:
    """A socket that listens on the gateway's port. Where gRPC is on, the next port is kept for it until `held` closes.

    Raises as `listen`, naming the port; `Invalid` where gRPC is on but not installed."""
    if settings.grpc and importlib.util.find_spec("grpc") is None:
        raise Invalid("gRPC needs the library 'grpcio', which is not installed: pip install 'modelyard[grpc]'.")
    for attempt in range(_ATTEMPTS):
        listener = listen(settings.host, settings.port)
        try:
            kept = (listener, keep_next(listener)) if settings.grpc else (listener,)
        except Conflict:
            listener.close()
            if settings.port or attempt == _ATTEMPTS - 1:
                raise
        else:
            for each in kept:
                held.enter_context(each)
            return listener
    raise AssertionError("the last attempt returns or raises")


def keep_next(listener: socket.socket) -> socket.socket:
    """A socket that keeps the port after a listener's without listening: only gateways of this user, which share it, can have
    it from now on. Raises `Conflict` where it is taken."""
    host, port = listener.getsockname()[:2]
    kept = socket.socket(listener.family, socket.SOCK_STREAM)
    try:
        # Shared ports can be had where another program of ours listens on one; a bind that shares nothing cannot.
        with socket.socket(listener.family, socket.SOCK_STREAM) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port + 1))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # with SO_REUSEADDR anybody could listen before us
        kept.bind((host, port + 1))
    except (OSError, OverflowError) as error:
        kept.close()
        why = error.strerror if isinstance(error, OSError) else "there is none"
        raise Conflict(f"Port {port + 1} of {host}, for gRPC, cannot be had ({why}): choose another with --port.") from error
    return kept


def command(process: str, settings: Settings, *words: str) -> list[str]:
    """How a process of the platform is started; `environment` has its settings."""
    return [sys.executable, "-m", "modelyard.app.process", process, str(settings.data), *words]


def environment(settings: Settings) -> dict[str, str]:
    """What a process of the platform is started with: exactly these settings."""
    return {**os.environ, SETTINGS: settings.model_dump_json()}


def _prepare(settings: Settings, url: str) -> None:
    """Migrate in a child: this process stays small. Raises what the child raised."""
    done = subprocess.run(command("migrate", settings, url), env=environment(settings), stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        try:
            said = json.loads(done.stdout)["error"]
        except (ValueError, KeyError, TypeError) as error:
            raise Crashed(f"Preparing {settings.data} ended with exit {done.returncode}.") from error
        raise from_wire(said["code"], said["message"])


async def _run(joined: Joined, listener: socket.socket | None, url: str, ready: Ready | None, ending: Ending | None) -> None:
    stop, loop, settings = asyncio.Event(), asyncio.get_running_loop(), joined.settings
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(settings.run, settings.jobs)
    await supervisor.start()
    try:
        if listener is not None:
            env, logs = environment(settings) | dict(joined.environment), settings.logs
            if joined.argv:
                supervisor.keep("ray", list(joined.argv), env=env, log_file=logs / "ray.log")
            supervisor.keep("control", command("control", settings), env=env, log_file=logs / "control.log")
            gateway = command("gateway", settings, "{fd0}")
            supervisor.keep("gateway", gateway, env=env, log_file=logs / "gateway.log", fds=[listener.fileno()])
            waiting = asyncio.ensure_future(_announce(settings.logs, url, ready))
            await asyncio.wait([waiting, asyncio.ensure_future(stop.wait())], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        await stop.wait()
        if ending is not None:
            ending()
    finally:
        await supervisor.stop()


async def _announce(logs: Path, url: str, ready: Ready | None) -> None:
    """Wait until the platform answers, then say so. Raises `Crashed` if it does not within a minute."""
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not await asyncio.to_thread(_answers, url):
        if asyncio.get_running_loop().time() > deadline:
            raise Crashed(f"The platform was not ready within {PATIENCE:g} s; the files in {logs} say why.")
        await asyncio.sleep(0.05)
    if ready is not None:
        ready(url)


def _answers(url: str) -> bool:
    """Whether the gateway serves and control answers behind it."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        return response.status == 200 and json.loads(response.read()).get("control") == "ok"
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _shown(host: str) -> str:
    """The host as a client on this machine reaches it."""
    if host in ("0.0.0.0", ""):  # noqa: S104 - shown, not bound
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host
