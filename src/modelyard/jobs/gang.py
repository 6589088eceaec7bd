"""A running gang on this machine, as control sees it: `jobs.types.GangHandle` over the launcher's socket.

Nothing here waits. What comes from the other end may be the work of a user's code: it is bounded, parsed with care, and a gang
that does not keep to the protocol is killed. However a gang ends, its last event is 'ended'.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from modelyard.errors import Crashed, Invalid, ModelyardError, Unavailable
from modelyard.jobs.lines import LineBuffer, encode
from modelyard.jobs.types import Event, Gang

# Bytes taken at one poll: a gang that floods waits, and the others get their turn.
_MOST_BYTES = 256 << 10
_CREDENTIALS = struct.Struct("3i")
# Seconds a launcher may be silent beyond what its ranks may: it beats every second, but not while it imports the kind.
_LAUNCHER_SILENCE = 30.0
# Seconds the processes may take to end once the socket is closed.
_CLOSING = 5.0


class Processes(Protocol):
    """What a gang needs of the supervisor."""

    def processes(self) -> dict[str, dict[str, Any]]: ...
    def stop(self, token: str, grace: float) -> None: ...


class LocalGang:
    """Control's end of one gang. `ended`: its last event was given out; `closing`: it is gone and how is being made out.
    `warning` comes before all that the gang says. One that was lost and `stays` keeps its launcher until `again` or `kill`."""

    def __init__(self, gang: Gang, near: socket.socket, processes: Processes, warning: str | None = None) -> None:
        near.setblocking(False)
        self.socket = near
        self.ended = False
        self.closing = False
        self._gang = gang
        self._processes = processes
        self._buffer = LineBuffer()
        self._pids: dict[int, int] = {}
        self._first = [Event("log", {"rank": 0, "text": warning})] if warning else []
        self._heard = time.monotonic()
        self._closed_at = 0.0
        self._charged = 0.0  # seconds of processor time that attempts before this one were told to have taken
        self._reason: ModelyardError | None = None
        self.unsent = encode(gang.to_wire())
        self._flush()

    @property
    def token(self) -> str:
        return self._gang.token

    def poll(self) -> Sequence[Event]:
        if self.ended:
            return []
        self._flush()
        events, self._first = self._first, []
        events += [] if self.closing else self._receive()
        if self.closing and (last := self._ending()) is not None:
            events.append(last)
        if events and events[-1].type == "ended":
            self.ended = True
            if self._stays(events[-1]):
                self._charged += float(events[-1].body["cpu_seconds"])
            else:
                self._finish()
        return events

    def again(self, gang: Gang) -> None:
        """Have the launcher, which waits, run another attempt."""
        self._gang, self._pids, self._heard, self.ended = gang, {}, time.monotonic(), False
        self._say({"again": gang.to_wire()})

    def answer(self, ask: int, value: Any, error: ModelyardError | None = None) -> None:
        said = {"value": value} if error is None else {"error": {"code": error.code, "message": error.message}}
        self._say({"answer": ask, **said})

    def cancel(self) -> None:
        self._say({"cancel": True})

    def kill(self) -> None:
        if self.ended:
            self._finish()
        else:
            self._kill(Crashed("The gang was ended."))

    def _kill(self, reason: ModelyardError) -> None:
        self._reason = self._reason or reason
        with contextlib.suppress(Unavailable):
            self._processes.stop(self.token, 0)

    def _receive(self) -> list[Event]:
        events: list[Event] = []
        taken = 0
        while taken < _MOST_BYTES and not (events and events[-1].type == "ended"):
            try:
                data, ancillary, _, _ = self.socket.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                break
            except ConnectionError:
                data, ancillary = b"", []
            if not data:
                self._close()
                break
            taken += len(data)
            self._heard = time.monotonic()
            events += self._take(data, _sender(ancillary))
        if time.monotonic() - self._heard > self._gang.heartbeat + _LAUNCHER_SILENCE and self._reason is None:
            self._kill(Crashed("The gang's launcher gave no sign of life and was ended."))
        return events

    def _take(self, data: bytes, pid: int) -> list[Event]:
        events: list[Event] = []
        try:
            for message in self._buffer.feed(data):
                event = self._event(message, pid)
                if event is not None:
                    events.append(event)
                    if event.type == "ended":
                        break
        except (Invalid, KeyError, TypeError, ValueError) as error:
            self._kill(Invalid(f"The gang did not keep to the protocol and was ended: {error}"))
            self._close()
        return events

    def _event(self, message: dict[str, Any], pid: int) -> Event | None:
        kind = str(message.pop("type"))
        if kind == "beat" and "cpu_seconds" not in message:
            return None
        if kind != "rank":
            return Event(kind, message)
        # The kernel, not the rank, says who sent this, and in our own numbering.
        self._pids[int(message["rank"])] = pid
        if len(self._pids) < len(self._gang.mine):
            return None
        return Event("started", {"pids": [self._pids[number] for number in sorted(self._pids)]})

    def _close(self) -> None:
        self.closing = True
        self._closed_at = time.monotonic()

    def _ending(self) -> Event | None:
        """The last event of a gang that closed without one, once the supervisor knows how its launcher ended."""
        try:
            process: Mapping[str, Any] | None = self._processes.processes().get(self.token)
        except Unavailable:
            process = None
        waited = time.monotonic() - self._closed_at
        if process is not None and process["exit"] is None and waited < 2 * _CLOSING:
            if waited > _CLOSING:
                self._kill(Crashed("The gang's launcher closed its socket and did not end."))
            return None
        code = None if process is None else process["exit"]
        error = self._reason or self._why(process)
        return Event(
            "ended",
            {
                "ok": False,
                "cancelled": False,
                "error": {"code": error.code, "message": error.message},
                "signal": -code if code is not None and code < 0 else None,
                "cpu_seconds": 0.0 if process is None else max(0.0, process["cpu"] - self._charged),
            },
        )

    def _why(self, process: Mapping[str, Any] | None) -> ModelyardError:
        """What the end of the launcher means: a gang that the supervisor killed was wrong, another was lost."""
        if process is not None and process["reason"] is not None:
            return _wrong(process["reason"])
        code = None if process is None else process["exit"]
        return Crashed(f"The gang's launcher {_how(code)}.{_tail(self._gang.launcher_log)}")

    def _stays(self, ended: Event) -> bool:
        return self._gang.stays and ended.body.get("stays") is True and not self.closing

    def _finish(self) -> None:
        self.socket.close()
        with contextlib.suppress(Unavailable):
            self._processes.stop(self.token, 1.0)

    def _say(self, message: Mapping[str, Any]) -> None:
        self.unsent += encode(message)
        self._flush()

    def _flush(self) -> None:
        while self.unsent and not self.ended:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except BlockingIOError:
                return
            except OSError:
                self.unsent = b""


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
    return 0


def died(process: Mapping[str, Any]) -> ModelyardError | None:
    """What the end of a launcher means that nobody listened to: None where it went because its control had, or was told to."""
    if process["reason"] is not None:
        return _wrong(process["reason"])
    if process["exit"] < 0 and not process["stopped"]:
        return Crashed(f"The gang's launcher {_how(process['exit'])}.")
    return None


def _wrong(reason: str) -> ModelyardError:
    return Invalid(f"The job was ended: it {reason}.")


def _how(code: int | None) -> str:
    if code is None:
        return "is gone"
    if code >= 0:
        return f"ended with exit status {code} before its work was done"
    return f"was killed by signal {-code} ({signal.Signals(-code).name})"


def _tail(path: Path, size: int = 1000) -> str:
    """The end of the launcher's own output, which holds what kept it from starting."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            text = file.read().decode(errors="replace").strip()
    except OSError:
        return ""
    return f" It said: {text}" if text else ""
