"""Two machines on one, for tests: each with a network, a /tmp and processes of its own, between them one cable.

This one is the test's own thread and what it starts; the other is a shell under `unshare`. Nothing that listens on either can
be reached from outside them. It takes root, and Linux's own tools.
"""

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jobs_bench import eventually

HERE, THERE = "10.77.0.1", "10.77.0.2"
PORT = 6379
_TOOLS = ("unshare", "nsenter", "ip", "mount", "openssl", "bwrap")
_NEWNET = 0x40000000
_RAY = str(Path(sys.executable).parent / "ray")
_STORE = str(80 << 20)
# A node that is gone is seen to be within two seconds.
_HEALTH = (
    '{"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_timeout_ms": 1000,'
    ' "health_check_failure_threshold": 3}'
)
# Who may speak to Ray, as on any cluster that others can reach.
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
_ENVIRONMENT = os.environ | TOKEN | {"RAY_memory_monitor_refresh_ms": "0"}
_STARTED = "Ray runtime started"
# What of this machine the other shares is one folder, at the same path.
_OTHER = """
mount --make-rprivate / && mount --bind {shared} /mnt && mount -t tmpfs none /tmp &&
mkdir -p {shared} && mount --bind /mnt {shared} && read go &&
ip link set lo up && ip addr add {there}/24 dev cable1 && ip link set cable1 up &&
exec {ray} start --address {here}:{port} --node-ip-address {there} --num-cpus 2 --num-gpus 0 \
    --disable-usage-stats --object-store-memory {store} --block
"""


def possible() -> bool:
    return os.geteuid() == 0 and all(shutil.which(tool) for tool in _TOOLS)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def _space(process: object, kind: str) -> Path:
    """The namespace that a process is in."""
    return Path(f"/proc/{process}/ns/{kind}").readlink()


def _companions() -> list[int]:
    """The other processes in this thread's network."""
    ours, found = _space("thread-self", "net"), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if _space(path.name, "net") == ours and int(path.name) != os.getpid():
                found.append(int(path.name))
    return found


@contextmanager
def _network() -> Iterator[None]:
    """This thread, and what it starts, in a network of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_NEWNET):
            raise OSError(ctypes.get_errno(), "no network of its own can be had")
        try:
            _run("ip", "link", "set", "lo", "up")
            # The address is the machine's, not the cable's: it stays when that goes. By the default route Ray finds it.
            _run("ip", "link", "add", "machine", "type", "veth", "peer", "name", "nobody")
            _run("ip", "link", "set", "nobody", "up")
            _run("ip", "addr", "add", f"{HERE}/32", "dev", "machine")
            _run("ip", "link", "set", "machine", "up")
            _run("ip", "route", "add", "default", "dev", "machine", "src", HERE)
            yield
        finally:
            libc.setns(before, _NEWNET)
    finally:
        os.close(before)


class Other:
    """The other machine, with a node of the cluster on it."""

    def __init__(self, shared: Path) -> None:
        script = _OTHER.format(shared=shared, here=HERE, there=THERE, port=PORT, ray=_RAY, store=_STORE)
        apart = ("unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child")
        self._said = shared / "other.log"
        self._log = self._said.open("ab")
        self._outer = subprocess.Popen(
            (*apart, "sh", "-c", script),
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            env=_ENVIRONMENT,
        )
        self.init = int(eventually(self._child))

    def plug(self) -> None:
        """Lay the cable."""
        _run("ip", "link", "add", "cable0", "type", "veth", "peer", "name", "cable1", "netns", str(self.init))
        _run("ip", "link", "set", "cable0", "up")
        _run("ip", "route", "add", THERE, "dev", "cable0", "src", HERE)

    def go(self) -> None:
        """Have its node join the cluster."""
        assert self._outer.stdin is not None
        self._outer.stdin.write(b"go\n")
        self._outer.stdin.close()
        eventually(lambda: _STARTED in self._said.read_text())

    def _child(self) -> str | None:
        """The first process there, once it is there and not only about to be."""
        found = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        return found[0] if found and _space(found[0], "net") != _space("thread-self", "net") else None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, in its network and its /tmp."""
        return subprocess.run(
            ("nsenter", "-t", str(self.init), "-n", "-m", "-p", *words), capture_output=True, text=True, check=False
        )

    def processes(self) -> list[int]:
        """Numbers, as this machine knows them."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(path.name))
        found = [self.init]
        for pid in found:  # which grows meanwhile
            found += children.get(pid, [])
        return found

    def unplug(self) -> None:
        """The cable is cut: no word of the other machine arrives any more, nor of its end."""
        self.run("ip", "link", "set", "cable1", "down")

    def end(self) -> None:
        """The power is cut."""
        self._outer.kill()
        self._outer.wait(30)
        self._log.close()
        with suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", "cable0")


@contextmanager
def machines(shared: Path) -> Iterator[Other]:
    """A cluster of a head here, at HERE:PORT, and one node on the other machine; both see the folder `shared`."""
    with _network(), tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        other, process = Other(shared), None
        try:
            other.plug()
            with (shared / "head.log").open("ab") as log:
                head = ("--head", "--node-ip-address", HERE, "--port", str(PORT), "--include-dashboard", "false")
                more = ("--num-gpus", "0", "--temp-dir", folder, "--object-store-memory", _STORE, "--system-config", _HEALTH)
                words = (_RAY, "start", *head, *more, "--num-cpus", "2", "--disable-usage-stats", "--block")
                process = subprocess.Popen(words, stdout=log, stderr=log, env=_ENVIRONMENT)
            eventually(lambda: _STARTED in (shared / "head.log").read_text())
            other.go()
            yield other
        finally:
            other.end()
            for pid in _companions():  # at once: nothing of it is to be kept
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if process is not None:
                process.wait(30)
