"""The gang launcher: forks the ranks, passes on what they say and print, and decides when the gang is over.

`worker` runs it, as the one process in the sandbox that control speaks with. A gang is over when all ranks are done, or the
first one failed, or it was cancelled, is out of time or a rank hangs (`pulse`); and when control's end of the socket closes.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import selectors
import signal
import socket
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from modelyard.errors import Crashed, Invalid, ModelyardError, TimedOut, from_wire
from modelyard.jobs import confine, memory, stacks, strays
from modelyard.jobs import rank as ranks
from modelyard.jobs.footprint import excess
from modelyard.jobs.forked import Forked, ready
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.processes import cpu_seconds, descendants, die_with_parent, orphans
from modelyard.jobs.pulse import Pulse
from modelyard.jobs.types import Gang
from modelyard.kinds import Run

_BEAT = 1.0
# After the first failure others are waited for this long: the cause and its consequences arrive together.
_SETTLE = 0.3
_STACKS = 1.0
_CANCEL_GRACE = 10.0
# Between two looks at the work folder: seconds, and times what the last look took.
_LOOK, _LOOK_SHARE = 1.0, 4.0
# Between two looks at the gang's memory: seconds, and times what the last look took; bytes it may hold beyond its ranks' share.
_WEIGH, _WEIGH_SHARE = 0.5, 20.0
_ALLOWANCE = 512 << 20
# What a rank may say besides how it ended: passed on as it is, or asked, to be answered by control. It asks one at a time, but
# may let go of a question when the job is cancelled.
_SAID = ("log", "progress", "metric", "report")
_ASKED = ("output", "adopt", "checkpoint", "submit", "wait", "watch", "stop")
_MOST_ASKED = 16
_LONGEST_ERROR = 8192
# Bytes that wait for control at most; beyond it the ranks wait too.
_BACKLOG = 1 << 20
_TOO_LONG = "The job was ended after the time it may take: its `--timeout`, or job_timeout where it was submitted without one."
# Reads of 64 KiB that are still taken from a rank that has ended.
_LAST_WORDS = 64


class ControlGone(Exception):
    """Control's end of the socket is closed."""


class Launcher:
    """Runs one gang to its end. `buffer` has read control's lines so far, `more` are those that followed the gang; `charged`
    are the seconds of processor time that earlier gangs of this process were told to have taken."""

    def __init__(
        self, control: socket.socket, gang: Gang, buffer: LineBuffer, more: Sequence[dict[str, Any]] = (), charged: float = 0
    ) -> None:
        self._control = control
        self._gang = gang
        self._incoming = buffer
        self._more = list(more)
        self._outgoing = b""
        self._selector = selectors.DefaultSelector()
        self._ranks: list[Forked] = []
        # What went wrong: when (0: it comes before all that was said), what, by which signal.
        self._failures: list[tuple[float, ModelyardError, int | None]] = []
        self._began = self._beat = self._look = self._weigh = time.monotonic()
        self._charged = charged
        self._pulse = Pulse(gang.mine, gang.heartbeat, self._began)
        self._folders = memory.private_folders()
        self._end_at: float | None = None
        self._ending = self._cancelled = False
        # What the ranks print from when they were asked where they are.
        self._stacks: dict[int, list[str]] = {}
        self._silent: list[int] = []
        self._hung_at = 0.0

    def run(self, function: Run, config: Any) -> bool:
        """Fork, watch, tell control how it ended: whether it was lost, so that another may follow. Raises `ControlGone`."""
        self._fork(function, config)
        self._selector.register(self._control, selectors.EVENT_READ, self._hear_control)
        self._obey(self._more)
        while any(rank.exit is None for rank in self._ranks):
            for key, _ in self._selector.select(0.05 if self._end_at is not None else _BEAT / 2):
                key.data()
            self._flush()
            self._tick(time.monotonic())
        return self._end()

    def fail(self, error: ModelyardError) -> None:
        """The gang could not even begin."""
        self._fail(error, 0)
        self._end()

    def _fork(self, function: Run, config: Any) -> None:
        gc.freeze()
        launcher = os.getpid()
        for number in self._gang.mine:
            near, far = socket.socketpair()
            read, write = os.pipe()
            with warnings.catch_warnings():
                # Libraries may keep sleeping threads of their own after an import; none of ours runs yet.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                near.close()
                os.close(read)
                self._become(number, launcher)
                ranks.main(self._gang, function, config, number, far, write)
            far.close()
            os.close(write)
            os.set_blocking(read, False)
            self._ranks.append(Forked(number, pid, os.pidfd_open(pid), near, read))
        for rank in self._ranks:
            # Nothing may be written to control before every rank has said its own line there.
            ready(rank.socket.fileno(), rank.pidfd)
            rank.socket.setblocking(False)
            self._selector.register(rank.socket, selectors.EVENT_READ, functools.partial(self._hear, rank))
            self._selector.register(rank.output, selectors.EVENT_READ, functools.partial(self._read, rank))
            self._selector.register(rank.pidfd, selectors.EVENT_READ, functools.partial(self._reap, rank))

    def _become(self, number: int, launcher: int) -> None:
        """In the new process: let go of what is the launcher's, and say hello to control, which learns the process id by it."""
        die_with_parent()
        if os.getppid() != launcher:
            os._exit(1)
        confine.hide(hidden=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for other in self._ranks:
            other.close()
        self._selector.close()
        self._control.send(encode({"type": "rank", "rank": number}))
        self._control.close()

    def _tick(self, now: float) -> None:
        """Time passed: beat, and see whether the gang's time, its silence or a grace is over."""
        if now - self._beat >= _BEAT:
            self._beat = now
            orphans({rank.pid for rank in self._ranks})  # what the ranks' children left to us is reaped
            running = sum(rank.cpu_seconds() for rank in self._running())
            self._say({"type": "beat", "cpu_seconds": cpu_seconds() - self._charged + running})
        if self._end_at is None and now >= self._look:
            self._look_at_disk(now)
        if self._end_at is None and now >= self._weigh:
            self._look_at_memory(now)
        if self._end_at is not None:
            if now >= self._end_at:
                self._kill()
        elif now - self._began >= self._gang.timeout:
            self._fail(TimedOut(_TOO_LONG), 0)
        else:
            self._feel(now)

    def _feel(self, now: float) -> None:
        """See whether a rank hangs."""
        running = {rank.number: rank for rank in self._running()}
        asking = [number for number, rank in running.items() if rank.asking]
        self._silent = self._pulse.look(now, list(running), asking)
        if self._silent:
            self._show_stacks()

    def _look_at_disk(self, now: float) -> None:
        """End the gang if its work folder is too large; look again after a while."""
        found = excess(self._gang.work, self._gang.disk, self._gang.files)
        if not self._gang.work.is_dir():
            self._fail(Invalid("The job was ended: its work folder is gone."), 0)
        elif found is not None:
            self._fail(Invalid(f"The job was ended: its work folder holds {found} (the settings job_disk, job_files)."), 0)
        done = time.monotonic()
        self._look = done + max(_LOOK, _LOOK_SHARE * (done - now))

    def _look_at_memory(self, now: float) -> None:
        """End the gang if its processes hold more together than its ranks may; look again after a while."""
        pids = [os.getpid(), *descendants(os.getpid())]
        ranks = len(self._gang.mine)
        most = self._gang.memory * ranks + _ALLOWANCE
        held = memory.held(pids, self._folders, most)
        if held > most:
            said = f"its {len(pids)} processes held {held:,} bytes together"
            bound = f"a gang of {ranks} may hold {most:,} ({self._gang.memory:,} a rank, and {_ALLOWANCE:,})"
            self._fail(Invalid(f"The job ran out of memory: {said}; {bound}."), 0)
        done = time.monotonic()
        self._weigh = done + max(_WEIGH, _WEIGH_SHARE * (done - now))

    def _show_stacks(self) -> None:
        """Have the ranks say where they are before they are ended."""
        self._say({"type": "log", "rank": 0, "text": f"{self._pulse.told(self._silent)}; where each rank is:"})
        self._ending, self._hung_at = True, time.monotonic()
        self._soon(_STACKS)
        for rank in self._running():
            self._stacks[rank.number] = []
            os.kill(rank.pid, signal.SIGUSR1)

    def _hang(self) -> Crashed:
        """What a gang is told that hung: it was lost, and may be started again."""
        advice = "Each rank must call check() or progress() every few seconds; the log has every rank's stack."
        where = stacks.told(self._stacks, self._silent)
        return Crashed(f"The gang was ended: {self._pulse.told(self._silent)}. {where} {advice}")

    def _hear(self, rank: Forked) -> None:
        """Take what a rank says."""
        try:
            messages = rank.hear()
            for message in messages or ():
                self._take(rank, message)
        except (Invalid, KeyError, TypeError, ValueError) as error:
            self._fail(Invalid(f"rank {rank.number} did not keep to the protocol: {error}"), 0)
            messages = None
        if messages is None:
            self._forget(rank.socket)

    def _take(self, rank: Forked, message: dict[str, Any]) -> None:
        self._pulse.beat(rank.number)
        match message["type"]:
            case "cancelled" if not self._cancelled:
                rank.ending = message
                self._fail(Invalid(f"rank {rank.number} raised Cancelled, but nobody had asked it to stop"), 0)
            case "done" | "cancelled":
                rank.ending = message
            case "failed":
                rank.ending = message
                error = from_wire(message["error"]["code"], str(message["error"]["message"])[:_LONGEST_ERROR])
                self._failures.append((float(message["at"]), error, None))
                self._soon(_SETTLE)
            case "beat":
                if "times" in message:
                    self._pulse.allow(rank.number, float(message["times"]))
            case kind if kind in _SAID:
                message.pop("ask", None)
                self._say({**message, "rank": rank.number})
            case kind if kind in _ASKED and len(rank.asking) < _MOST_ASKED:
                rank.asking.add(int(message["ask"]))
                self._say({**message, "rank": rank.number, "ask": int(message["ask"]) * self._gang.ranks + rank.number})
            case kind:
                raise Invalid(f"it said '{str(kind)[:40]}', or asked too much at once")

    def _read(self, rank: Forked) -> bool:
        """Take what a rank printed; False when there is no more for now."""
        lines = rank.printed()
        if rank.mute:
            self._forget(rank.output)
        if lines is None:
            return False
        self._pulse.beat(rank.number)
        self._log(rank, lines)
        return True

    def _log(self, rank: Forked, lines: list[str]) -> None:
        for text in lines:
            self._say({"type": "log", "rank": rank.number, "text": text})
        if len(stack := self._stacks.get(rank.number, [])) < stacks.MOST_LINES:
            stack += lines

    def _forget(self, source: Any) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(source)

    def _reap(self, rank: Forked) -> None:
        if not rank.reap():
            return
        self._hear(rank)
        for _ in range(_LAST_WORDS):
            if not self._read(rank):
                break
        self._log(rank, rank.rest())
        for source in (rank.socket, rank.output, rank.pidfd):
            self._forget(source)
        rank.close()
        if (rank.ending is None or (rank.done and rank.exit)) and not self._ending:
            self._lost(rank, rank.exit or 0)

    def _lost(self, rank: Forked, code: int) -> None:
        """A rank ended without a word: that comes before whatever its peers say of it."""
        if code < 0:
            hint = ", perhaps because the machine ran out of memory" if code == -signal.SIGKILL else ""
            message = f"rank {rank.number} was killed by signal {-code} ({signal.Signals(-code).name}){hint}"
            self._failures.append((0.0, Crashed(message), -code))
        else:
            message = f"rank {rank.number} ended with exit status {code} before its work was done"
            self._failures.append((0.0, Invalid(message), None))
        self._soon(_SETTLE)

    def _hear_control(self) -> None:
        try:
            data = self._control.recv(65536)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            raise ControlGone
        self._obey(self._incoming.feed(data))

    def _obey(self, messages: Sequence[dict[str, Any]]) -> None:
        for message in messages:
            if message.get("cancel"):
                self._cancel()
            elif "answer" in message:
                self._answer(message)

    def _cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            for rank in self._running():
                self._tell(rank, {"cancel": True})
            self._soon(_CANCEL_GRACE)

    def _answer(self, message: dict[str, Any]) -> None:
        ask, number = divmod(int(message["answer"]), self._gang.ranks)
        rank = self._ranks[number - self._gang.mine.start]
        rank.asking.discard(ask)
        self._tell(rank, {**message, "answer": ask})

    def _tell(self, rank: Forked, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            rank.socket.send(encode(message))

    def _running(self) -> list[Forked]:
        return [rank for rank in self._ranks if rank.exit is None]

    def _fail(self, error: ModelyardError, pause: float) -> None:
        """It is we who end the gang: how the ranks take it tells nothing more."""
        self._ending = True
        self._failures.append((time.monotonic(), error, None))
        self._soon(pause)

    def _soon(self, pause: float) -> None:
        """End the ranks that still run, `pause` seconds from now at the latest."""
        at = time.monotonic() + pause
        self._end_at = at if self._end_at is None else min(at, self._end_at)

    def _kill(self) -> None:
        if self._cancelled and not self._ending and not self._failures:
            deaf = ", ".join(f"rank {rank.number}" for rank in self._running())
            text = f"not stopped within {_CANCEL_GRACE:g} s of being asked, and killed: {deaf}"
            self._say({"type": "log", "rank": 0, "text": text})
        self._ending = True
        for rank in self._running():
            os.kill(rank.pid, signal.SIGKILL)

    def _say(self, message: Mapping[str, Any]) -> None:
        self._outgoing += encode(message)
        if len(self._outgoing) > _BACKLOG:
            self._flush(everything=True)

    def _flush(self, *, everything: bool = False) -> None:
        while self._outgoing:
            try:
                self._outgoing = self._outgoing[self._control.send(self._outgoing) :]
            except BlockingIOError:
                if not everything:
                    return
                ready(self._control.fileno(), events=select.POLLOUT)
            except ConnectionError as error:
                raise ControlGone from error

    def _end(self) -> bool:
        self._flush(everything=True)
        left = strays.end()
        if left:
            self._say({"type": "log", "rank": 0, "text": f"WARNING: the job {strays.shown(left)}", "level": "warning"})
            self._say({"type": "report", "rank": 0, "facts": {"strays": len(left)}})
        if self._stacks:
            self._failures.append((self._hung_at, self._hang(), None))
        cause = min(self._failures, key=lambda failure: failure[0], default=None)
        cancelled = self._cancelled and not all(rank.done for rank in self._ranks)
        error = None if cause is None or cancelled else cause[1]
        ago = time.monotonic() - cause[0] if cause is not None and cause[0] else 0.0
        stays = self._gang.stays and isinstance(error, Crashed) and memory.clear(self._folders)
        self._say(
            {
                "type": "ended",
                "ok": error is None and not cancelled,
                "cancelled": cancelled,
                "error": None if error is None else {"code": error.code, "message": _told(error, left)},
                "signal": None if cause is None else cause[2],
                "at": time.time() - ago,
                "cpu_seconds": cpu_seconds() - self._charged,
                "stays": stays,
            }
        )
        self._flush(everything=True)
        self._selector.close()
        return stays


def _told(error: ModelyardError, left: list[str]) -> str:
    return f"{error.message}\nIt {strays.shown(left)}." if left else error.message
