"""The composition root: settings in, wired processes out. The one room that knows every implementation.

`up` is the supervisor with a gateway and control; `gateway`, `control` and `node` are the same processes run apart; `migrate`
makes the data folder and the database ready. Each lives in its own module, loaded when it is called, so that the supervisor
holds no database and the gateway no management API.
"""

from __future__ import annotations

from collections.abc import Callable

from modelyard.plugins import load
from modelyard.settings import Settings

# Called once the platform answers, with its URL.
Ready = Callable[[str], None]


def up(settings: Settings, ready: Ready | None = None) -> None:
    """Run the platform on this machine until SIGINT or SIGTERM; `ready(url)` is called once it answers.

    Raises `Conflict` where the port is taken or another `up` runs on the same folder.
    """
    load("modelyard.app.supervise:up")(settings, ready)


def node(settings: Settings) -> None:
    """Run a supervisor alone: what `modelyard control` needs beside it to start gangs and replicas."""
    load("modelyard.app.supervise:node")(settings)


def gateway(settings: Settings, listener: int | None = None) -> None:
    """Run a gateway until SIGTERM; `listener` is the descriptor of a socket that listens already."""
    load("modelyard.app.gateway:run")(settings, listener)


def control(settings: Settings) -> None:
    """Run control until SIGTERM: the management API, the scheduler and the controller."""
    load("modelyard.app.control:run")(settings)


def migrate(settings: Settings, url: str | None = None) -> None:
    """Make the data folder and the database ready; at the first start also the project 'default', its admin key and
    `profile.json`, which names `url`. Raises `Conflict` for a database of a newer schema."""
    load("modelyard.app.migrate:run")(settings, url)
