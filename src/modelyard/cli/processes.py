"""Commands that start processes on this machine: `up`, its parts for production, `migrate`, and `doctor`.

They read the settings (flag > environment > file > default) and call `modelyard.app`, which knows how things are wired.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from modelyard.cli.screen import AsJson, note, say
from modelyard.cli.table import table
from modelyard.plugins import load

Folder = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder that holds everything the platform keeps [MODELYARD_DATA, ~/.modelyard].", metavar="DIR"
    ),
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 where not said.", show_default=False)]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port to listen on, 8080 where not said; 0 picks a free one.", show_default=False),
]
Grpc = Annotated[
    bool | None, typer.Option("--grpc/--no-grpc", help="Answer gRPC too, on the next port; without TLS.", show_default=False)
]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster that runs jobs and replicas: HOST:PORT, ray://HOST:PORT, or 'ray': its own, here.", show_default=False
    ),
]

Running = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="Ray cluster that runs jobs and replicas: HOST:PORT or ray://HOST:PORT.", show_default=False
    ),
]


def up(
    data: Folder = None,
    host: Host = None,
    port: Port = None,
    grpc: Grpc = None,
    cluster: Cluster = None,
    as_json: AsJson = False,
) -> None:
    """Start a whole platform on this machine; Ctrl-C ends it."""
    settings = load("modelyard.settings:read")(data=data, host=host, port=port, grpc=grpc, cluster=cluster)

    def ready(url: str) -> None:
        profile = settings.data / "profile.json"
        calls = _next(url) if settings.grpc else None
        told = {"url": url, "data": str(settings.data), "profile": str(profile), **({"grpc": calls} if calls else {})}
        say(as_json, told, welcome(url, settings.data, profile, calls))

    load("modelyard.app.supervise:up")(settings, ready, lambda: note("ending…"))


def _next(url: str) -> str:
    """The address of the port after a URL's."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    return f"{host}:{int(port) + 1}"


def welcome(url: str, data: Path, profile: Path, calls: str | None = None) -> str:
    """What `up` says once it answers: where (also for gRPC `calls`), with which key, and what to do next."""
    usual = Path("~/.modelyard").expanduser().resolve()
    lines = [
        f"Modelyard answers at {url}",
        *([f"  gRPC     {calls}  (not encrypted)"] if calls else []),
        f"  data     {data}",
        f"  profile  {profile}  (URL and admin key; the command line uses it)",
        "",
        "Next, in another terminal:",
        *([] if data == usual else [f"  export MODELYARD_DATA={shlex.quote(str(data))}"]),
        "  modelyard dataset import digits --from sklearn:digits",
        "  modelyard train digits-cnn --dataset digits --ranks 2 --follow",
        "  modelyard deploy digits --model digits-cnn",
        "",
        "Ctrl-C ends it; what it keeps stays.",
    ]
    return "\n".join(lines)


def gateway(data: Folder = None, host: Host = None, port: Port = None, grpc: Grpc = None, as_json: AsJson = False) -> None:
    """Start a gateway alone: keys, routing, inference."""
    _start("gateway", "gateway:run", as_json, data=data, host=host, port=port, grpc=grpc)


def control(data: Folder = None, cluster: Running = None, as_json: AsJson = False) -> None:
    """Start control alone: the management API, the scheduler and the controller."""
    _start("control", "control:run", as_json, data=data, cluster=cluster)


def node(data: Folder = None, as_json: AsJson = False) -> None:
    """Start a node's supervisor alone: it owns gangs and replicas."""
    _start("node", "supervise:node", as_json, data=data)


def migrate(data: Folder = None, as_json: AsJson = False) -> None:
    """Bring the database to this version's schema."""
    settings = load("modelyard.settings:read")(data=data)
    load("modelyard.app.migrate:run")(settings)
    say(as_json, {"migrated": True}, "The database is up to date.")


def _start(process: str, path: str, as_json: bool, **flags: Any) -> None:
    settings = load("modelyard.settings:read")(**flags)
    load(f"modelyard.app.{path}")(settings)
    say(as_json, {"process": process, "state": "ended"}, f"{process} ended")


def doctor(data: Folder = None, host: Host = None, port: Port = None, as_json: AsJson = False) -> None:
    """Check what a platform on this machine needs, and say what to do about what is missing."""
    settings = load("modelyard.settings:read")(data=data, host=host, port=port)
    checks = load("modelyard.cli.doctor:examine")(settings)
    rows = [(check.name, check.state, check.found) for check in checks]
    say(as_json, {"checks": [check.to_json() for check in checks]}, table(("check", "state", "found"), rows))
    for check in checks:
        if check.advice:
            note(f"{check.name}: {check.advice}")
    if any(check.state == "failed" for check in checks):
        raise typer.Exit(1)
