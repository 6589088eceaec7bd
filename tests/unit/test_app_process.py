from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from modelyard.app import process
from modelyard.errors import Conflict
from modelyard.settings import Settings


def test_an_error_is_one_document_and_the_settings_are_not_inherited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = Settings(data=tmp_path, port=1234)

    def run(settings: Settings, *words: Any) -> None:
        assert (settings, words) == (given, (7,))
        assert process.SETTINGS not in os.environ, "children of this process would have them too"
        raise Conflict("the port is taken")

    monkeypatch.setattr(process, "load", {"modelyard.app.gateway:run": run}.__getitem__)
    monkeypatch.setenv(process.SETTINGS, given.model_dump_json())
    assert process.main(["gateway", str(tmp_path), "7"]) == 1
    assert json.loads(capsys.readouterr().out) == {"error": {"code": "conflict", "message": "the port is taken"}}


def test_a_process_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(process.SETTINGS, Settings(data=tmp_path).model_dump_json())
    assert process.main(["gatewy", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_request"
