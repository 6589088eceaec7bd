"""The servers that Modelyard is measured beside, each in an environment of its own, and how one is started and ended.

A server that cannot be installed or does not answer is `Missing`, with the reason: it is named in the record, never left out.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import protocols
from peers.install import Missing, python
from protocols import Protocol
from record import HERE, cpu_of, memory_of, tree

PEERS = HERE / "peers"
WORKERS = 2
START = 120.0  # seconds a server may take to answer: Ray starts half a dozen processes


@dataclass(frozen=True)
class Subject:
    """What is served: a graph (and its tokenizer), distinct samples, and onnxruntime's answers to some of them, by index."""

    name: str
    kind: str
    file: Path
    samples: list[Any]
    expected: Mapping[int, np.ndarray]
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Rival:
    """A server and its settings. `environment` None: the project's own. `wait_ms` is how long it may wait for a batch.
    `restless`: it takes a tenth of a core or more while nobody asks it anything, so it must not run beside another's turn."""

    protocol: Callable[[str], Protocol]
    app: str
    environment: str | None
    batch: int = 32
    wait_ms: int = 1
    command: tuple[str, ...] = ()
    restless: bool = False


_BENTO = ("{bin}/bentoml", "serve", "bentoml_app:Served", "--working-dir", str(PEERS), "--host", "127.0.0.1", "-p", "{port}")
RIVALS: dict[str, Rival] = {
    "fastapi": Rival(protocols.raw, "fastapi_app.py", None),
    "mosec": Rival(protocols.inference, "mosec_app.py", "mosec"),
    "mosec, no batches": Rival(protocols.inference, "mosec_app.py", "mosec", batch=1),
    "litserve": Rival(protocols.wrapped, "litserve_app.py", "litserve", restless=True),
    "bentoml": Rival(protocols.bento, "", "bentoml", command=_BENTO),
    "mlserver": Rival(protocols.oip, "mlserver_app.py", "mlserver"),
    "kserve": Rival(partial(protocols.oip, binary=True), "kserve_app.py", "kserve"),
    "triton": Rival(partial(protocols.oip, binary=True, batched_text=True), "triton_app.py", "triton"),
    "ray": Rival(protocols.raw, "ray_app.py", "ray", restless=True),
}


class Refused(Exception):
    """A server answered a call with an error."""


@dataclass
class Server:
    """A server that runs: where, how it is asked, and the first of its processes."""

    name: str
    url: str
    protocol: Protocol
    pid: int
    headers: Mapping[str, str] = field(default_factory=dict)

    def ask(self, client: http.client.HTTPConnection, sample: Any) -> np.ndarray:
        """One call. Raises `Refused` where it is not answered 200."""
        client.request("POST", self.protocol.path, self.protocol.body(sample), {**self.protocol.headers, **self.headers})
        answer = client.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise Refused(f"{self.name} answered {answer.status}: {body[:300]!r}")
        return self.protocol.read({name.lower(): value for name, value in answer.getheaders()}, body)

    def client(self, timeout: float = 30.0) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", int(self.url.rpartition(":")[2]), timeout=timeout)

    def cpu(self) -> float:
        return cpu_of(tree(self.pid))

    def memory(self) -> int:
        return sum(memory_of(pid) for pid in tree(self.pid))


@contextlib.contextmanager
def running(name: str, subject: Subject, folder: Path) -> Iterator[Server]:
    """A rival that serves `subject` while the block runs. Raises `Missing`."""
    rival = RIVALS[name]
    program = Path(sys.executable) if rival.environment is None else python(rival.environment)
    port, log = free_ports(), folder / f"{name.replace(', ', '-').replace(' ', '-')}-{subject.name}.log"
    work = folder / f"{port}"
    work.mkdir(parents=True)
    words = rival.command or (str(program), str(PEERS / rival.app))
    command = [word.format(bin=program.parent, port=port) for word in words]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=work, env=_environment(rival, subject, port, work, program),
            start_new_session=True,
        )  # fmt: skip
    server = Server(name, f"http://127.0.0.1:{port}", rival.protocol(subject.kind), process.pid)
    try:
        _until_answering(server, process, subject, log)
        yield server
    finally:
        end(process)


def end(process: subprocess.Popen[bytes], patience: float = 10.0) -> None:
    """End a server and every process it started: all are known before the first is asked to go."""
    pids = tree(process.pid)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline and any(_lives(pid) for pid in pids):
            process.poll()
            time.sleep(0.05)
    process.wait(patience)


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _environment(rival: Rival, subject: Subject, port: int, work: Path, program: Path) -> dict[str, str]:
    told = {
        "MODEL": subject.file, "TOKENIZER": subject.tokenizer or "", "KIND": subject.kind, "PORT": port, "WORKERS": WORKERS,
        "BATCH": rival.batch, "WAIT_MS": rival.wait_ms, "FOLDER": work,
    }  # fmt: skip
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    paths = {"PYTHONPATH": str(PEERS), "PATH": f"{program.parent}:{os.environ['PATH']}", "BENTOML_DO_NOT_TRACK": "1"}
    return os.environ | quiet | paths | {f"PEER_{name}": str(value) for name, value in told.items()}


def _until_answering(server: Server, process: subprocess.Popen[bytes], subject: Subject, log: Path) -> None:
    deadline, why = time.monotonic() + START, "it does not answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.ask(server.client(), subject.samples[0])
            return
        except (OSError, http.client.HTTPException, Refused, AssertionError, ValueError, KeyError) as error:
            why = str(error) or why
        time.sleep(0.2)
    ending = "it ended" if process.poll() is not None else why
    raise Missing(f"{ending}; {log.name} ends with: {' '.join(log.read_text(errors='replace').split())[-300:]}")


def free_ports(several: int = 3) -> int:
    """The first of some ports in a row that nobody listens on."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                for number in range(1, several):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port + number))
            except OSError:
                continue
            return port
