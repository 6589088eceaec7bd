"""What a person types often loads nothing that it does not need: its answer is there before they notice that they waited."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

# Each takes 10 ms or more to load, most of them far more.
HEAVY = {
    *("torch", "onnxruntime", "onnx", "numpy", "sklearn", "pyarrow", "PIL", "ray"),
    *("sqlalchemy", "alembic", "obstore", "fastapi", "starlette", "uvicorn", "uvloop", "httptools"),
    *("httpx", "msgspec", "prometheus_client", "structlog", "pydantic_settings", "modelyard.client.transfer"),
}
ANSWERS = {
    "/api/jobs/underway?first=20": {"jobs": [], "counts": {"queued": 0, "starting": 0, "running": 0}},
    "/api/deployments": [],
}
LOADED = "import sys; from modelyard.cli import main; code = main(); sys.stderr.write(' '.join(sys.modules)); sys.exit(code)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        pass


@pytest.fixture
def url() -> Iterator[str]:
    """A platform as far as `ps` is concerned."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_gate_loads_nothing_heavy() -> None:
    """Control decides by it."""
    code = "import sys, modelyard.optimisation.gate; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "modelyard.optimisation.evidence" in ran.stdout.split()
    assert not set(ran.stdout.split()) & HEAVY


@pytest.mark.parametrize(("command", "unneeded"), [("--help", {"httpcore", "modelyard.client"}), ("ps", {"rich", "pygments"})])
def test_what_is_typed_often_loads_no_heavy_module(command: str, unneeded: set[str], url: str) -> None:
    environment = {**os.environ, "MODELYARD_URL": url, "MODELYARD_KEY": "my_key"}
    ran = subprocess.run([sys.executable, "-c", LOADED, command], capture_output=True, text=True, env=environment, check=True)
    assert "Look" in ran.stdout or ran.stdout == "No jobs on their way.\n\nNothing is deployed.\n"
    needlessly = set(ran.stderr.split()) & (HEAVY | unneeded)
    assert not needlessly
