from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from modelyard.cli import doctor
from modelyard.settings import Settings


def test_an_old_python_and_a_missing_library_say_what_to_do() -> None:
    assert doctor.python((3, 10, 0)).state == "failed"
    assert doctor.python((3, 11, 0)).state == "ok"
    missing = doctor.library("no-such-library", "to test: pip install it")
    assert (missing.state, missing.advice) == ("warning", "needed to test: pip install it")
    assert doctor.library("pytest", "").found == pytest.__version__


def test_secrets_that_others_can_read_are_found(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text("{}")
    (tmp_path / "profile.json").chmod(0o644)
    (tmp_path / "secret").write_text("")
    (tmp_path / "secret").chmod(0o600)
    folder, profile = doctor.permissions(tmp_path)
    assert folder.state == "ok"
    assert (profile.name, profile.state) == ("profile.json", "failed")
    assert "chmod 600" in profile.advice


def test_a_data_folder_that_is_not_there_yet_will_be_made(tmp_path: Path) -> None:
    (check,) = doctor.permissions(tmp_path / "a" / "b")
    assert check.state == "ok"
    assert doctor.disk(tmp_path / "a" / "b").found.endswith("free")


def test_a_damaged_database_is_found(tmp_path: Path) -> None:
    file = tmp_path / "modelyard.db"
    assert doctor.database(f"sqlite:///{file}").found == "will be made"
    connection = sqlite3.connect(file)
    connection.execute("create table t (x)")
    connection.close()
    assert doctor.database(f"sqlite:///{file}").state == "ok"
    file.write_bytes(b"not a database" * 100)
    assert doctor.database(f"sqlite:///{file}").state == "failed"
    assert doctor.database("postgresql+psycopg://h/db").found == "postgresql"


def test_a_sandbox_that_is_required_and_missing_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "load", lambda path: lambda: False)
    assert doctor.bubblewrap("auto").state == "warning"
    assert doctor.bubblewrap("require").state == "failed"


def test_the_port_is_the_profile_s_unless_another_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELYARD_PORT", raising=False)
    settings = Settings(data=tmp_path)
    assert doctor.at_profile(settings).port == settings.port
    (tmp_path / "profile.json").write_text(json.dumps({"url": "http://127.0.0.1:9123", "key": "my_key", "project": "default"}))
    (tmp_path / "profile.json").chmod(0o600)
    (check,) = (check for check in doctor.examine(settings) if check.name == "port")
    assert "127.0.0.1:9123" in check.found
    assert doctor.at_profile(Settings(data=tmp_path, port=8081)).port == 8081
    monkeypatch.setenv("MODELYARD_PORT", "8082")
    assert doctor.at_profile(Settings(data=tmp_path)).port == 8082
    (tmp_path / "profile.json").write_text("{")
    monkeypatch.delenv("MODELYARD_PORT")
    assert doctor.at_profile(settings).port == settings.port
