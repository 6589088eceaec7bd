"""One child process of the supervisor: started with limits and tied to it, watched, told, killed, reaped.

Plain system calls: `subprocess` cannot say how much processor time a child took, and asyncio's own watcher starts threads,
which would break the tie between a child's life and the thread that started it. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.errors import Invalid
from modelyard.jobs import memory
from modelyard.jobs.footprint import excess

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Loaded before any fork: a child must not import.
_libc = ctypes.CDLL(None, use_errno=True)

# Processes of a sandbox with one program in it, whose memory the kernel bounds.
_ALONE = 2
_RLIMITS = {
    "nofile": resource.RLIMIT_NOFILE,
    "data": resource.RLIMIT_DATA,
    "nproc": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
    "fsize": resource.RLIMIT_FSIZE,
}


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def become_subreaper() -> None:
    """Orphans among this process's descendants become its children, instead of init's."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(eq=False)
class Child:
    """A process and all it starts. `exit` is None while it runs; negative: killed by that signal. `most_processes`: how many it
    may start, `most_memory`: the bytes that those may hold together (0: any number); `folder`: where it may write, with the
    bytes on disk and the files that it may leave there; `reason`: what it did that we killed it for; `stopped`: whether its end
    was asked for."""

    pid: int
    label: str
    sandboxed: bool
    exit: int | None = None
    cpu_seconds: float = 0.0
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    most_processes: int = 0
    most_memory: int = 0
    folder: Path | None = None
    most_disk: int = 0
    most_files: int = 0
    reason: str | None = None
    stopped: bool = False
    _popen: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, request: Mapping[str, Any], fds: list[int]) -> Child:
        """Start `request`'s argv ('{fd0}', '{fd1}', … are replaced by the numbers of the passed descriptors).

        Raises `Invalid` where the program cannot be run.
        """
        names = {f"{{fd{n}}}": str(fd) for n, fd in enumerate(fds)}
        argv = [names.get(word, word) for word in request["argv"]]
        with contextlib.ExitStack() as stack:
            output: Any = stack.enter_context(Path(request["log"]).open("ab")) if request.get("log") else None
            try:
                popen = subprocess.Popen(
                    argv,
                    env=dict(request["env"]),
                    cwd=request.get("cwd"),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=fds,
                    start_new_session=True,
                    preexec_fn=_prepare(os.getpid(), dict(request.get("limits") or {})),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise Invalid(f"'{argv[0]}' could not be started: {error}.") from error
        limits = request.get("limits") or {}
        return cls(
            popen.pid,
            str(request.get("label", "")),
            Path(argv[0]).name == "bwrap",
            most_processes=int(limits.get("processes", 0)),
            most_memory=int(limits.get("held", 0)),
            folder=Path(request["folder"]) if request.get("folder") else None,
            most_disk=int(limits.get("disk", 0)),
            most_files=int(limits.get("files", 0)),
            _popen=popen,
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Reap the process when it ends."""
        pidfd = os.pidfd_open(self.pid)

        def reap() -> None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                loop.remove_reader(pidfd)
                os.close(pidfd)
                self._reaped(status, usage)

        loop.add_reader(pidfd, reap)

    def _reaped(self, status: int, usage: resource.struct_rusage) -> None:
        code = os.waitstatus_to_exitcode(status)
        # bubblewrap tells of a signal the way a shell does.
        self.exit = 128 - code if self.sandboxed and code > 128 else code
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        if self._popen is not None:
            self._popen.returncode = self.exit
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind in its group
        self.ended.set()

    async def stop(self, grace: float) -> None:
        """Ask it to end (SIGTERM to the program itself, not to its sandbox), and kill its whole group after `grace` seconds."""
        self.stopped |= self.exit is None
        if self.exit is None and grace > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(_program(self.pid), signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), grace)
        self.kill()
        await self.ended.wait()

    def bound(self) -> bool:
        """Kill it where more processes stem from it than it may start, or they hold or wrote too much; whether it was."""
        if self.exit is not None or self.reason is not None or not self.most_processes:
            return False
        self.reason = self._excess()
        if self.reason is None:
            return False
        self.kill()
        return True

    def _excess(self) -> str | None:
        below = descendants(self.pid, self.most_processes)
        if len(below) > self.most_processes:
            return f"started more than {self.most_processes} processes"
        if self.folder is not None and (found := excess(self.folder, self.most_disk, self.most_files, opens=False)):
            return f"left {found} in its folder"
        if not self.most_memory or len(below) <= _ALONE:
            return None
        held = memory.held([self.pid, *below], (), self.most_memory)
        return f"held {held:,} bytes in {len(below)} processes" if held > self.most_memory else None

    def kill(self) -> None:
        if self.exit is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)


def _prepare(parent: int, limits: dict[str, int]) -> Callable[[], None]:
    """What the child does between fork and exec: its limits, and to die with the supervisor."""

    def prepare() -> None:
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
        for name, value in limits.items():
            if name in _RLIMITS:
                _limit(_RLIMITS[name], int(value))
        if "nice" in limits:
            os.nice(int(limits["nice"]))
        if "oom" in limits:
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123 — between fork and exec
                file.write(str(limits["oom"]))

    return prepare


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (most, most))


def _program(pid: int) -> int:
    """The program inside the sandbox, if `pid` is one: the first descendant that is not bubblewrap."""
    while _name(pid) == "bwrap":
        inner = next(_children(pid), None)
        if inner is None:
            break
        pid = inner
    return pid


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _children(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/task") as tasks:
        for task in tasks:
            with contextlib.suppress(OSError), open(f"{task.path}/children") as file:  # noqa: PTH123 — all processes, twice a second
                yield from map(int, file.read().split())


def descendants(pid: int, enough: int | None = None) -> list[int]:
    """The processes that stem from `pid`; past `enough` it looks no further. Those of a sandbox never leave its tree."""
    waiting, seen = [pid], list[int]()
    while waiting and (enough is None or len(seen) <= enough):
        below = list(_children(waiting.pop()))
        waiting += below
        seen += below
    return seen


def orphans(known: set[int]) -> set[int]:
    """Children of this process that are not among `known`: processes whose parent is gone. The dead ones are reaped."""
    found = {pid for pid in _children(os.getpid()) if pid not in known}
    return {pid for pid in found if not _reaped(pid)}


def leftovers(folders: Iterable[Path]) -> set[int]:
    """This user's sandboxes and replicas that were started for something in `folders`, and are nobody's any more: bubblewrap
    ties its inner process to the outer one only after it was made, so that one killed in between leaves the other behind."""
    places = re.compile("|".join(rf'[\0"]{re.escape(str(folder))}/' for folder in folders))
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            said, own = (process / "cmdline").read_text(errors="replace"), process.stat().st_uid == os.getuid()
        except OSError:
            continue
        if own and ("bwrap" in said.partition("\0")[0] or "\0modelyard.serving.replica\0" in said) and places.search(said):
            found.add(int(process.name))
    return found - set(descendants(os.getpid()))


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


if sys.platform != "linux":
    raise ImportError("Modelyard's processes are supervised with Linux system calls; run it on Linux or in a Linux container.")


def cpu_seconds() -> float:
    """What this process and those of its children that have ended took."""
    used = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)
