"""The gateway's process: its view of the database, bound to the data plane."""

from __future__ import annotations

import contextlib
import socket
from functools import partial

from modelyard import migrations, telemetry
from modelyard.app.migrate import pepper
from modelyard.app.supervise import bind
from modelyard.db import Database, revision
from modelyard.serving import observations, serve, settlement
from modelyard.serving.directory import Directory
from modelyard.serving.distrust import distrust
from modelyard.serving.follower import State
from modelyard.settings import Settings
from modelyard.tenancy.access import load_keys, load_quotas


def run(settings: Settings, listener: int | None = None) -> None:
    """Run a gateway until SIGTERM; `listener` is the descriptor of a socket that listens already."""
    telemetry.configure("gateway", settings.log_level)
    database = Database(settings.database_url)
    migrations.check(database)
    held = contextlib.ExitStack()
    bound = socket.socket(fileno=listener) if listener is not None else bind(settings, held)
    books = serve.Books(
        load=partial(load, database, Directory()),
        revision=partial(number, database),
        settle=partial(settlement.settle, database),
        settled=partial(settlement.settled, database),
        forget=partial(settlement.forget, database),
        observe=partial(observations.write, database),
        distrust=partial(distrust, database),
    )
    try:
        with held:
            serve.run(settings, pepper(settings), books, bound)
    finally:
        database.close()


def load(database: Database, directory: Directory) -> State:
    """Keys, routes and quotas as of one revision."""
    with database.read() as session:
        return State(revision(session), load_keys(session), directory.read(session), load_quotas(session))


def number(database: Database) -> int:
    """The revision alone."""
    with database.read() as session:
        return revision(session)
