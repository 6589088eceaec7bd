"""A data folder is made ready once, and again after being killed at any line; its secrets are for its owner alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelyard.app import migrate
from modelyard.db import Database
from modelyard.errors import Damaged
from modelyard.settings import Settings
from modelyard.tenancy.access import LiveKeyRing

URL = "http://127.0.0.1:8080"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "yard")


def profile(settings: Settings) -> dict[str, str]:
    return dict(json.loads((settings.data / "profile.json").read_text()))


def works(settings: Settings, key: str) -> bool:
    database = Database(settings.database_url)
    try:
        return LiveKeyRing(database, migrate.pepper(settings)).verify(key, 0.0).project == "default"
    finally:
        database.close()


def test_the_first_start_makes_a_key_that_works_and_the_next_keeps_it(settings: Settings) -> None:
    migrate.run(settings, URL)
    first = profile(settings)
    assert (first["url"], first["project"]) == (URL, "default")
    assert works(settings, first["key"])
    secret = migrate.pepper(settings)
    migrate.run(settings, URL)
    assert profile(settings) == first
    assert migrate.pepper(settings) == secret


def test_what_is_secret_is_its_owners_alone(settings: Settings) -> None:
    migrate.run(settings, URL)
    for name in ("secret", "profile.json"):
        assert (settings.data / name).stat().st_mode & 0o777 == 0o600
    assert settings.data.stat().st_mode & 0o077 == 0


def test_another_port_moves_the_profile_and_no_url_leaves_it(settings: Settings) -> None:
    migrate.run(settings, URL)
    key = profile(settings)["key"]
    migrate.run(settings, "http://127.0.0.1:9")
    migrate.run(settings)
    assert profile(settings) == {"url": "http://127.0.0.1:9", "key": key, "project": "default"}


def test_killed_before_the_commit_it_makes_the_profile_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    write = migrate.write_private

    def killed(path: Path, text: str) -> None:
        write(path, text)
        if path.name == "profile.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(migrate, "write_private", killed)
    with pytest.raises(KeyboardInterrupt):
        migrate.run(settings, URL)
    lost = profile(settings)["key"]
    monkeypatch.undo()
    migrate.run(settings, URL)
    assert profile(settings)["key"] != lost
    assert works(settings, profile(settings)["key"])


def test_a_database_whose_secret_is_gone_gets_no_new_one(settings: Settings) -> None:
    migrate.run(settings, URL)
    (settings.data / "secret").unlink()
    with pytest.raises(Damaged, match="backup"):
        migrate.run(settings, URL)


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    migrate.write_private(tmp_path / "f", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(migrate.os, "fsync", full)
    with pytest.raises(OSError, match="space"):
        migrate.write_private(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old\n"
