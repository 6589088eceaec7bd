"""The schema of the database, step by step. `up` and `modelyard migrate` bring a database to the newest revision; every
other process checks that it is there. Knows all rooms' tables and none of their verbs.

A new step: change the tables, then `make migration MESSAGE="what changed"` (`python -m modelyard.migrations "what changed"`)
writes `versions/NNNN_what_changed.py` from the difference. Read it: it is code like any other.
"""

from __future__ import annotations

import importlib
import tempfile
from argparse import Namespace
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, MetaData, inspect, text

from modelyard.db import Base, Database, guard
from modelyard.errors import Conflict

ROOMS = ("tenancy", "catalogue", "jobs", "serving")
_FOLDER = Path(__file__).parent
_LOCK = 0x6D6F64  # 'mod': PostgreSQL's advisory lock, which one migration at a time holds


def metadata() -> MetaData:
    """Every room's tables."""
    for room in ROOMS:
        importlib.import_module(f"modelyard.{room}.tables")
    return Base.metadata


def head() -> str:
    """The newest revision this version of Modelyard knows."""
    found = ScriptDirectory(str(_FOLDER)).get_current_head()
    assert found is not None, "the package holds no migrations"
    return found


def migrate(database: Database) -> str:
    """Bring a database, also an empty one, to the newest revision, in one transaction; returns the revision.

    Raises `Conflict` where the schema is newer than this version of Modelyard, or is not Modelyard's.
    """
    newest = head()
    with database.begin() as session:
        connection = session.connection()
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        found = _revision(connection)
        if found is None and inspect(connection).get_table_names():
            raise Conflict("The database has tables but no schema revision: it is not Modelyard's; use an empty one.")
        if found != newest:
            _refuse_newer(found, newest)
            command.upgrade(_config(connection), "head")
            guard(connection, metadata())
    return newest


def check(database: Database) -> None:
    """Raises `Conflict`, naming both revisions, unless the database is at the newest one."""
    newest = head()
    with database.read() as session:
        found = _revision(session.connection())
    if found != newest:
        _refuse_newer(found, newest)
        raise Conflict(
            f"The database's schema is at revision {found or 'none'}, this version needs {newest}: run `modelyard migrate`."
        )


def generate(message: str) -> Path | None:
    """Write the step from the newest revision to the tables as they are now; None where nothing differs."""
    scripts = ScriptDirectory(str(_FOLDER))
    number = f"{len(list(scripts.walk_revisions())) + 1:04d}"
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/empty.db")
        with database.begin() as session:
            config = _config(session.connection())
            if scripts.get_current_head() is not None:
                command.upgrade(config, "head")
            written = command.revision(config, message, autogenerate=True, rev_id=number)
        database.close()
    found = [script for script in (written if isinstance(written, list) else [written]) if script is not None]
    return Path(found[0].path) if found else None


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _refuse_newer(found: str | None, newest: str) -> None:
    known = {script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions()}
    if found is not None and found not in known:
        raise Conflict(
            f"The database's schema is at revision {found}, newer than {newest}, the newest this version knows: "
            "install the version of Modelyard that wrote it, or a later one."
        )


def _config(connection: Connection) -> Config:
    config = Config(cmd_opts=Namespace(quiet=True))
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config
