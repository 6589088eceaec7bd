"""Settings: who wins, what is refused, and where the folders are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from modelyard.errors import Invalid
from modelyard.settings import Settings, read


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in [name for name in os.environ if name.upper().startswith("MODELYARD_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_defaults(tmp_path: Path):
    settings = read()
    assert settings.data == tmp_path / "home" / ".modelyard"
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.database_url == f"sqlite:///{settings.data}/modelyard.db"
    assert settings.store_url == f"file://{settings.data}/store"
    assert (settings.cache, settings.jobs, settings.logs) == tuple(settings.data / name for name in ("cache", "jobs", "logs"))


def test_flag_over_environment_over_file_over_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "modelyard.toml").write_text("port = 1\ngrace = 1.5\njob_cpus = 3\n")
    monkeypatch.setenv("MODELYARD_PORT", "2")
    monkeypatch.setenv("MODELYARD_GRACE", "2.5")
    settings = read(data=tmp_path, port=3, grace=None)
    assert (settings.port, settings.grace, settings.job_cpus, settings.call_timeout) == (3, 2.5, 3, 60.0)


def test_the_file_of_the_folder_named_in_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "modelyard.toml").write_text("port = 7\n")
    monkeypatch.setenv("MODELYARD_DATA", str(tmp_path))
    monkeypatch.setenv("MODELYARD_HOST", "")
    settings = read()
    assert (settings.port, settings.data, settings.host) == (7, tmp_path, "127.0.0.1")


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert read(data="yard").data == tmp_path / "yard"
    assert read(data="~/yard").data == tmp_path / "home" / "yard"


def test_settings_are_frozen(tmp_path: Path):
    with pytest.raises(ValidationError):
        read(data=tmp_path).port = 1


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("prot = 1", "prot"),
        ("port = 'many'\ngrace = -1", "grace"),
        ("port = ", "not TOML"),
        ("sandbox = 'maybe'", "'auto', 'require' or 'off'"),
    ],
)
def test_a_wrong_file_is_a_clear_error(tmp_path: Path, file: str, says: str):
    (tmp_path / "modelyard.toml").write_text(file)
    with pytest.raises(Invalid, match=says):
        read(data=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("MODELYARD_PORT", "70000"), ("MODELYARD_JOB_CPUS", "-1"), ("MODELYARD_LOG_LEVEL", "loud")]
)
def test_a_wrong_environment_is_a_clear_error(name: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(Invalid, match=name.removeprefix("MODELYARD_").lower()):
        read()


def test_the_file_cannot_move_the_folder_it_lies_in(tmp_path: Path):
    default = tmp_path / "home" / ".modelyard"
    default.mkdir(parents=True)
    (default / "modelyard.toml").write_text("data = '/elsewhere'")
    with pytest.raises(Invalid, match="use --data or MODELYARD_DATA"):
        read()


def test_lists_come_as_json_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELYARD_HOSTS", '["yard.lan"]')
    assert read().hosts == ("yard.lan",)
    monkeypatch.setenv("MODELYARD_HOSTS", "yard.lan")
    with pytest.raises(Invalid, match=r"hosts.*JSON"):
        read()


def test_unknown_names_in_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELYARD_PROT", "1")
    with pytest.raises(Invalid, match=r"MODELYARD_PROT.*known are.*MODELYARD_PORT"):
        read()


def test_the_clients_own_names_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MODELYARD_URL", "http://127.0.0.1:8080")
    monkeypatch.setenv("MODELYARD_KEY", "my_x_y")
    read()


def test_an_unknown_flag_is_refused():
    with pytest.raises(Invalid, match="prot"):
        read(prot=1)


def test_the_run_folder_is_short_enough_for_a_socket(tmp_path: Path):
    near = Settings(data=Path("/srv/yard"))
    assert near.run == Path("/srv/yard/run")
    deep = Settings(data=tmp_path / ("x" * 100))
    assert len(str(deep.run)) < 64
    assert deep.run != Settings(data=tmp_path / ("y" * 100)).run
    assert deep.run == Settings(data=tmp_path / ("x" * 100)).run


def test_what_is_the_tests_own_is_no_setting(monkeypatch):
    monkeypatch.setenv("MODELYARD_TEST_POSTGRESQL", "postgresql+psycopg://host/name")
    assert read()
