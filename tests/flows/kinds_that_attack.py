"""Job kinds that attack what runs them: their launcher, the sandbox, the machine. Each fact says what came of an attempt."""

import ctypes
import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinds_for_tests import Plan, wait_for_ever

from modelyard.errors import ModelyardError
from modelyard.kinds import JobKind

_libc = ctypes.CDLL(None, use_errno=True)
_PTRACE_SEIZE, _UNSHARE, _ADD_KEY, _PIDFD_OPEN, _PIDFD_GETFD = 0x4206, 272, 248, 434, 438
_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000


def came_of(attempt: Callable[[], Any]) -> str:
    try:
        return f"REACHED {attempt()!r}"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def call(function: Any, *arguments: Any) -> int:
    result = int(function(*arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return result


def _write_again(path: str) -> int:
    """Write to one of the kernel's files what it holds."""
    fd = os.open(path, os.O_RDWR)
    try:
        return os.write(fd, os.read(fd, 4096))
    finally:
        os.close(fd)


def _in_child(attempt: Callable[[], Any]) -> int:
    """Attempt something in a process of its own, which it may change for good."""
    pid = os.fork()
    if pid == 0:
        code = 0
        try:
            attempt()
        except OSError as error:
            code = error.errno or 1
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "refused")
    return code


def _take_descriptors(pid: int) -> int:
    """A descriptor of another process: its conversation with control."""
    pidfd = call(_libc.syscall, _PIDFD_OPEN, pid, 0)
    return max(call(_libc.syscall, _PIDFD_GETFD, pidfd, fd, 0) for fd in range(3, 8))


def breaks_out(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Reach for the kernel and for the launcher."""
    launcher = os.getppid()
    context.report(
        core_pattern=came_of(lambda: _write_again("/proc/sys/kernel/core_pattern")),
        overcommit=came_of(lambda: _write_again("/proc/sys/vm/overcommit_memory")),
        user_namespace=came_of(lambda: _in_child(lambda: call(_libc.unshare, _NEW_USER | _NEW_MOUNTS))),
        clone=came_of(lambda: call(_libc.syscall, 56, _NEW_USER | signal.SIGCHLD, 0, 0, 0, 0)),
        mount=came_of(lambda: _in_child(lambda: call(_libc.mount, b"none", b"/tmp", b"tmpfs", 0, b""))),
        key=came_of(lambda: call(_libc.syscall, _ADD_KEY, b"user", b"canary", b"x", 1, -4)),
        ptrace=came_of(lambda: call(_libc.ptrace, _PTRACE_SEIZE, launcher, 0, 0)),
        memory=came_of(lambda: os.open(f"/proc/{launcher}/mem", os.O_RDWR)),
        descriptors=came_of(lambda: _take_descriptors(launcher)),
        rename=came_of(lambda: context.work.rename(context.work.with_name("gone"))),
        nice=came_of(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5)),
        spared=came_of(lambda: Path("/proc/self/oom_score_adj").write_text("-1000")),
        others=sorted(int(p.name) for p in Path("/proc").glob("[0-9]*") if int(p.name) not in (launcher, os.getpid())),
    )


def forges(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Say something on the rank's own line to the launcher that no rank says."""
    (line,) = [s for s in gc.get_objects() if isinstance(s, socket.socket) and s.fileno() >= 0 and s.family == socket.AF_UNIX]
    line.sendall(config.text.encode())
    if config.number:
        time.sleep(0.5)
        os._exit(config.number)
    wait_for_ever(context)


def closes(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Close everything that is open."""
    os.closerange(0, 4096)
    if config.number:
        time.sleep(600)


def leaves(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Leave `number` processes behind, each twice forked, in a session of its own."""
    code = "import os, time; os.fork() and os._exit(0); os.setsid(); time.sleep(600)"
    for _ in range(config.number):
        subprocess.run([sys.executable, "-c", code, config.text], check=True, stdout=subprocess.DEVNULL)
    folder = context.work / "out"
    folder.mkdir()
    (folder / "x").write_text("x")
    outputs.publish("kept", folder)


def stops(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def pours(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Print for ever, without an end of the line."""
    while True:
        os.write(1, b"x" * 65536)


def _fill(fd: int, context: Any) -> None:
    block = bytes(16 << 20)
    for _ in range(200):
        os.write(fd, block)
        context.check()
        time.sleep(0.005)


def _shared_segments(context: Any) -> None:
    """System V segments that are written and let go of, but not removed."""
    _libc.shmat.restype = ctypes.c_void_p
    for _ in range(20):
        size = 100 << 20
        segment = call(_libc.shmget, 0, size, 0o1600)
        address = _libc.shmat(segment, None, 0)
        ctypes.memset(address, 1, size)
        _libc.shmdt(ctypes.c_void_p(address))
        context.check()


def bloats(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Take memory where no limit of a process finds it."""
    match config.text:
        case "memfd":
            _fill(os.memfd_create("hidden"), context)
        case "shm":
            _fill(os.open("/dev/shm/large", os.O_CREAT | os.O_RDWR), context)
        case "segments":
            _shared_segments(context)
    wait_for_ever(context)


def plants(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Publish folders with something else than files in them."""

    def publish(name: str, fill: Callable[[Path], Any]) -> str:
        folder = context.work / name
        folder.mkdir()
        (folder / "plain.txt").write_text("x")
        fill(folder)
        try:
            outputs.publish(name, folder)
        except ModelyardError as error:
            return error.code
        return "REACHED"

    context.report(
        link=publish("link", lambda folder: (folder / "a").symlink_to("/etc/shadow")),
        folder_link=publish("folder-link", lambda folder: (folder / "a").symlink_to("/")),
        hard_link=publish("hard-link", lambda folder: (folder / "a").hardlink_to(folder / "plain.txt")),
        pipe=publish("pipe", lambda folder: os.mkfifo(folder / "a")),
        listening=publish("listening", lambda folder: socket.socket(socket.AF_UNIX).bind(str(folder / "a"))),
    )


def clings(config: Plan, inputs: Any, outputs: Any, context: Any) -> None:
    """Leave a work folder that is hard to remove: deeper than a path may be long, and closed."""
    os.chdir(context.work)
    for _ in range(config.number):
        Path("d").mkdir()
        os.chdir("d")
    Path("file").touch()
    Path().chmod(0)
    os.chdir(context.work)
    (context.work / "closed" / "inner").mkdir(parents=True)
    (context.work / "closed").chmod(0)


NAMES = [
    "bloats",
    "breaks_out",
    "clings",
    "closes",
    "forges",
    "leaves",
    "plants",
    "pours",
    "stops",
]
KINDS = {name: JobKind(name, Plan, f"kinds_that_attack:{name}", gang=True) for name in NAMES}
