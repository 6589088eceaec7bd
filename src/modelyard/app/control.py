"""Control: the management API on a Unix socket, and the loops of the scheduler and the controller in threads."""

from __future__ import annotations

import socket
import threading
from functools import partial
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from modelyard import __version__, telemetry
from modelyard.app.cluster import OWN
from modelyard.app.migrate import pepper
from modelyard.catalogue.routes import routes as catalogue_routes
from modelyard.db import Database
from modelyard.errors import Invalid
from modelyard.jobs.executor import LocalExecutor
from modelyard.jobs.routes import routes as jobs_routes
from modelyard.jobs.scheduler import Scheduler
from modelyard.jobs.types import Executor
from modelyard.metrics import exposition
from modelyard.plugins import load
from modelyard.serving import service as serving
from modelyard.serving.controller import Controller
from modelyard.serving.probe import probe
from modelyard.serving.routes import gates as gate_routes
from modelyard.serving.routes import routes as serving_routes
from modelyard.settings import Settings
from modelyard.storage import Artefacts, open_store
from modelyard.tenancy import idempotency
from modelyard.tenancy.access import LiveKeyRing
from modelyard.tenancy.failures import install
from modelyard.tenancy.openapi import document
from modelyard.tenancy.router import Routes, check_routes
from modelyard.tenancy.routes import routes as tenancy_routes
from modelyard.tenancy.types import Scope
from modelyard.work import KINDS

# The only paths that answer without a key.
OPEN = frozenset({"/healthz", "/readyz"})


def build(settings: Settings, executor: Executor) -> FastAPI:
    """Everything wired, nothing started: `app.state` holds what routes use, the loops included."""
    app = FastAPI(title="Modelyard", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    state, key = app.state, pepper(settings)
    state.settings, state.pepper, state.kinds = settings, key, KINDS
    state.db = Database(settings.database_url)
    state.artefacts = Artefacts(open_store(settings.store_url), settings.cache)
    state.keyring = LiveKeyRing(state.db, key)
    state.hosts = frozenset({settings.host, *settings.hosts})
    state.in_use = serving.in_use
    state.executor = executor
    state.scheduler = Scheduler(state.db, state.artefacts, executor, settings, KINDS)
    asked = partial(probe, identity=settings.identity)
    state.controller = Controller(state.db, state.artefacts, executor, settings, asked)
    install(app)
    for routes in (tenancy_routes, catalogue_routes, jobs_routes, serving_routes, gate_routes, own):
        app.include_router(routes)
    app.add_api_route("/healthz", healthy, include_in_schema=False)
    app.add_api_route("/readyz", healthy, include_in_schema=False)
    check_routes(app, OPEN)
    return app


own = Routes(tags=["platform"])


@own.get("/api/openapi.json", scope=Scope.infer, include_in_schema=False)
def openapi(request: Request) -> JSONResponse:
    """The OpenAPI document of the management API."""
    return JSONResponse(document(request.app))


@own.get("/metrics", scope=Scope.infer, include_in_schema=False)
def metrics() -> Response:
    """Control's own metrics, on its own socket: the gateway asks for them when it is asked for its."""
    return Response(exposition(), media_type="text/plain; version=0.0.4")


def executor(settings: Settings) -> Executor:
    """What runs gangs and replicas: this machine's supervisor, or the cluster that is named. Raises `Invalid`."""
    if not settings.cluster:
        return LocalExecutor(settings)
    if settings.cluster == OWN:
        raise Invalid(f"A cluster of its own ('{OWN}') is for `modelyard up`; give control one that runs: --cluster HOST:PORT.")
    made: Executor = load("modelyard.jobs.ray.executor:RayExecutor")(settings)
    return made


def healthy() -> dict[str, str]:
    """Control answers."""
    return {"status": "ok"}


def run(settings: Settings) -> None:
    """Run control until SIGTERM."""
    telemetry.configure("control", settings.log_level)
    app = build(settings, executor(settings))
    idempotency.abandon(app.state.db)
    stop = threading.Event()
    loops = [threading.Thread(target=loop.run, args=(stop,), name=type(loop).__name__) for loop in _loops(app)]
    for thread in loops:
        thread.start()
    config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=3)
    with _listen(settings.run / "control.sock") as listener:
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            stop.set()
            for loop in _loops(app):
                loop.wake()
            for thread in loops:
                thread.join(timeout=10)
    app.state.db.close()


def _loops(app: FastAPI) -> tuple[Scheduler, Controller]:
    return app.state.scheduler, app.state.controller


def _listen(path: Path) -> socket.socket:
    """A Unix socket that only this user can connect to."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(256)
    return listener
