"""The sandbox around everything that may run users' code: gangs, importers, converters and replicas.

The executor calls it. `command` turns an argument list into one that bubblewrap runs with no network, its own process
ids, a read-only system and nothing else of the machine but the folders it is given. It decides from its arguments
alone; `available` and `interpreter` are where the machine is looked at. What it keeps out is in docs/sandbox.md.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import modelyard
from modelyard.errors import Unavailable
from modelyard.settings import Settings
from modelyard.telemetry import log

_log = log(__name__)

# The system, read-only. `-try`: which of them exist differs between distributions.
_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
# Of /etc only what the loader, name look-ups, time zones and TLS need. Never /etc/shadow, keys or configuration.
_ETC = (
    "alternatives",
    "group",
    "hosts",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "passwd",
    "ssl/certs",
    "ssl/openssl.cnf",
)
# Processor and memory topology, which thread pools ask for.
_TOPOLOGY = ("/sys/devices/system/cpu", "/sys/devices/system/node")
# Of the kernel's own files: what root may write to is for the whole machine, whatever namespace it is seen from.
_KERNEL = ("/proc/acpi", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/mtrr", "/proc/scsi", "/proc/sys", "/proc/sysrq-trigger")
_NAMESPACES = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
IN_MEMORY = 2 << 30
_DANGER = "Users' code runs as a plain process that can read this user's files and use the network"
_ADVICE = "install bubblewrap (apt install bubblewrap) and see docs/sandbox.md"


def command(
    argv: Sequence[str],
    *,
    readonly: Iterable[Path],
    writable: Iterable[Path],
    environment: Mapping[str, str],
    folder: Path,
    network: bool = False,
    devices: Iterable[Path] = (),
    sized: bool = True,
    first: bool = False,
) -> list[str]:
    """The argument list that runs `argv` in a sandbox, in `folder`.

    `readonly` and `writable` appear inside at their own paths, shorter paths first so that a folder inside another keeps its
    own mode. `environment` is all there is of it. `devices` are device nodes (GPUs). File descriptors are inherited. `sized`
    bounds /tmp and shared memory, which bubblewrap can do since 0.7. `first`: `argv` is the sandbox's first process, which no
    other in it can stop or kill; it must reap what it did not start.
    """
    bwrap = ["bwrap", "--die-with-parent", "--new-session", "--cap-drop", "ALL", *_NAMESPACES]
    if not network:
        bwrap.append("--unshare-net")
    if first:
        bwrap.append("--as-pid-1")
    for path in _SYSTEM:
        bwrap += ["--ro-bind-try", path, path]
    for name in _ETC:
        bwrap += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for path in _TOPOLOGY:
        bwrap += ["--ro-bind-try", path, path]
    bwrap += ["--proc", "/proc", "--dev", "/dev"]
    for path in _KERNEL:
        bwrap += ["--ro-bind-try", path, path]
    for device in devices:
        bwrap += ["--dev-bind-try", str(device), str(device)]
    for path in ("/dev/shm", "/tmp"):  # noqa: S108 — private ones, inside the sandbox
        bwrap += [*(("--size", str(IN_MEMORY)) if sized else ()), "--tmpfs", path]
    bwrap += [*_binds(readonly, writable), "--remount-ro", "/dev", "--remount-ro", "/", "--clearenv"]
    for name, value in sorted(environment.items()):
        bwrap += ["--setenv", name, value]
    return [*bwrap, "--chdir", str(folder), "--", *argv]


def _binds(readonly: Iterable[Path], writable: Iterable[Path]) -> list[str]:
    modes = dict.fromkeys(readonly, "--ro-bind") | dict.fromkeys(writable, "--bind")
    argv: list[str] = []
    for path in sorted(modes, key=lambda p: (len(p.parts), str(p))):
        argv += [modes[path], str(path), str(path)]
    return argv


def interpreter() -> list[Path]:
    """Folders this Python and this package are read from: the environment, what it is based on, the links between, the package.

    They are shown at their own paths, also where they lie in a home folder, and nothing beside them is.
    """
    found = [Path(sys.prefix), Path(sys.base_prefix), Path(sys.exec_prefix), Path(sys.base_exec_prefix)]
    hop = Path(sys.executable)
    while hop.is_symlink():
        hop = hop.parent / hop.readlink()
        found.append(hop.parent.parent)
    package = Path(modelyard.__file__).parent
    paths = {Path(os.path.normpath(p)) for p in [*found, package]}
    return sorted(p for p in paths if not any(_inside(p, Path(system)) for system in ("/usr", "/bin")) and p != Path("/"))


def _inside(path: Path, folder: Path) -> bool:
    return path == folder or folder in path.parents


def devices() -> list[Path]:
    """Device nodes of the GPUs of this machine."""
    return sorted([*Path("/dev").glob("nvidia*"), *Path("/dev/nvidia-caps").glob("*")])


def gpus() -> list[int]:
    """Numbers of the GPUs of this machine."""
    return sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())


def available() -> bool:
    """Whether bubblewrap runs here with all we ask of it; tried once a process by running it."""
    return _works(sized=True) or _works(sized=False)


def sized() -> bool:
    """Whether this bubblewrap can bound its in-memory folders."""
    return _works(sized=True)


@functools.cache
def _works(*, sized: bool) -> bool:
    if shutil.which("bwrap") is None:
        return False
    argv = command(["/bin/true"], readonly=[], writable=[], environment={}, folder=Path("/"), sized=sized, first=True)
    try:
        return subprocess.run(argv, capture_output=True, timeout=10, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def wanted(mode: str) -> bool:
    """Whether to use the sandbox, by the setting `sandbox`: 'require' raises `Unavailable` where it cannot be had, 'auto' warns
    loudly and goes without, 'off' goes without."""
    if mode != "off" and available():
        return True
    if mode == "require":
        raise Unavailable(
            "The setting sandbox is 'require', but bubblewrap does not run here: install it (apt install bubblewrap), "
            "allow user namespaces, or see docs/sandbox.md."
        )
    _warn(mode)
    return False


def warning(settings: Settings) -> str | None:
    """What is to be said at every start and in every job's log where users' code runs without a sandbox; None where it has
    one. Bubblewrap is tried once a process."""
    if settings.sandbox == "require" or (settings.sandbox != "off" and available()):
        return None
    why = "the setting sandbox is 'off'" if settings.sandbox == "off" else "bubblewrap does not run here"
    return f"WARNING: NO SANDBOX, {why}. {_DANGER}; {_ADVICE}."


@functools.cache
def _warn(mode: str) -> None:
    _log.warning(f"NO SANDBOX: {_DANGER}", sandbox=mode, advice=_ADVICE)
