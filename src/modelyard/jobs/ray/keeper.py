"""Keeps the bridge of a node: its identity, the port it listens on, and the process, started again when it ends.

The node's actor (`host`) holds one where the node is another machine than control's.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, cast

from modelyard.jobs.ray import tls
from modelyard.telemetry import log

_log = log(__name__)
_BACKLOG = 256
# Seconds between two starts of a bridge that ends.
_PAUSE = 1.0


class Keeper:
    """The bridge at `host` for the replicas in `folder`; `identity` is where its key is, or will be. Raises `Unavailable` where
    no key can be made, `OSError` where `host` is no address of this machine."""

    def __init__(self, host: str, folder: Path, identity: Path) -> None:
        self._folder, self._identity = folder, identity
        self._certificate = ssl.PEM_cert_to_DER_cert(tls.identity(identity))
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
        self._host, self._port = self._listener.getsockname()[:2]
        self._trusted = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = -_PAUSE

    def address(self, token: str) -> str:
        """Where a gateway reaches a replica of this node."""
        return str(tls.Address(self._host, self._port, token, self._certificate))

    def trust(self, certificate: str) -> None:
        """Let in the gateways that have this certificate (PEM), and no others."""
        if certificate != self._trusted:
            self._trusted = certificate
            self._tell()

    def look(self) -> None:
        """Start the bridge where it does not run. Called about twice a second; one that was ended loses what went over it."""
        process = self._process
        if not self._trusted or (process is not None and process.poll() is None):
            return
        if time.monotonic() - self._started < _PAUSE:
            return
        if process is not None:
            cast(IO[bytes], process.stdin).close()
            _log.warning("the bridge of this node ended and is started again", exit=process.returncode)
        self._started = time.monotonic()
        descriptor = self._listener.fileno()
        words = [str(descriptor), str(self._folder), str(self._identity)]
        argv = [sys.executable, "-P", "-m", "modelyard.jobs.ray.bridge", *words]
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, bufsize=0, pass_fds=[descriptor], start_new_session=True)
        self._tell()

    def close(self) -> None:
        """End it."""
        self._trusted = ""
        self._listener.close()
        if self._process is not None:
            cast(IO[bytes], self._process.stdin).close()
            self._process.wait()

    def _tell(self) -> None:
        if self._process is None:
            return
        try:
            to = cast(IO[bytes], self._process.stdin)
            to.write(json.dumps(self._trusted).encode() + b"\n")
        except BrokenPipeError:
            _log.warning("the bridge of this node did not listen; it is started again")
