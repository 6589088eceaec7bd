"""Makes a data folder ready: folders, the pepper, the schema, and at the first start a project with a key.

Safe to run again, and to be killed at any line: every step looks whether it was done.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from modelyard import migrations
from modelyard.db import Database
from modelyard.errors import Damaged
from modelyard.settings import Settings
from modelyard.tenancy import service as tenancy
from modelyard.tenancy.types import DEFAULT_PROJECT


def run(settings: Settings, url: str | None = None) -> None:
    """Make the data folder and the database ready; at the first start also the project 'default', its admin key and
    `profile.json`, which names `url`. Raises `Conflict` for a database of a newer schema."""
    for folder in (settings.data, settings.cache, settings.jobs, settings.logs):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key = pepper(settings)
    database = Database(settings.database_url)
    try:
        migrations.migrate(database)
        profile = settings.data / "profile.json"
        with database.begin() as session:
            first = tenancy.bootstrap(session, key)
            if first is not None:
                # Before the commit: a profile without its key is made again, a key without a profile is lost for good.
                write_private(profile, json.dumps({"url": url, "key": first.key, "project": DEFAULT_PROJECT}, indent=1))
    finally:
        database.close()
    if url is not None and profile.exists():
        kept = json.loads(profile.read_text())
        if kept.get("url") != url:
            write_private(profile, json.dumps({**kept, "url": url}, indent=1))


def pepper(settings: Settings) -> bytes:
    """The secret that key hashes are made with: read, or made at the first start."""
    path = settings.data / "secret"
    if not path.exists():
        if (settings.data / "modelyard.db").exists():
            raise Damaged(f"{path} is missing, and without it no key of this database is valid: put it back from a backup.")
        write_private(path, secrets.token_hex(32))
    return bytes.fromhex(path.read_text().strip())


def write_private(path: Path, text: str) -> None:
    """Write a file of mode 0600 whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    staged.replace(path)
