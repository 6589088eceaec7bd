"""The command line as processes and sockets see it."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from modelyard.cli import doctor
from modelyard.settings import Settings

HEAVY = {"httpx", "numpy", "pydantic", "sqlalchemy", "fastapi", "torch", "onnxruntime", "obstore", "rich.progress"}


def test_help_answers_at_once_because_it_loads_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "modelyard", "--help"], capture_output=True, text=True, check=True
    )
    assert "train" in done.stdout
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert not loaded & HEAVY
    assert len(loaded) < 450


def test_a_port_that_somebody_has_is_found(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(data=tmp_path, port=other.getsockname()[1])
        check = doctor.port(settings)
        assert check.state == "failed"
        assert "--port" in check.advice
    assert doctor.port(Settings(data=tmp_path, port=0)).state == "ok"
