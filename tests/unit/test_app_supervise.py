from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelyard.app import supervise
from modelyard.app.process import SETTINGS
from modelyard.errors import Conflict, Crashed
from modelyard.settings import Settings


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("::", "[::1]"),
        ("fe80::1", "[fe80::1]"),
        ("yard.lan", "yard.lan"),
    ],
)
def test_a_host_is_shown_as_a_client_here_reaches_it(host: str, shown: str) -> None:
    assert supervise._shown(host) == shown


def test_settings_travel_whole_and_not_where_others_can_read_them(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path, database="postgresql://me:secret@db/yard")
    assert Settings.model_validate_json(supervise.environment(settings)[SETTINGS]) == settings
    words = supervise.command("gateway", settings, "7")
    assert words[-3:] == ["gateway", str(tmp_path), "7"]
    assert not any("secret" in word for word in words)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (json.dumps({"error": {"code": "conflict", "message": "a newer schema"}}), Conflict, "newer schema"),
        ("Killed", Crashed, "exit 9"),
        ("", Crashed, "exit 9"),
        ('["error"]', Crashed, "exit 9"),
    ],
)
def test_what_the_migration_failed_with_is_raised_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, error: type[Exception], message: str
) -> None:
    def ran(words: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(words, 9, said.encode())

    monkeypatch.setattr(supervise.subprocess, "run", ran)
    with pytest.raises(error, match=message):
        supervise._prepare(Settings(data=tmp_path), "http://127.0.0.1:1")
