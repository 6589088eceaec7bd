"""A forked rank as its launcher sees it: a process, a socket it speaks on, a pipe it prints to.

`launcher` holds one per rank. It turns bytes into messages and lines of text, bounded, and reaps; it decides nothing.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelyard.jobs.lines import LineBuffer

_LONGEST_TEXT = 8192


@dataclass(eq=False)
class Forked:
    """One rank. `ending` is what it said last of itself; `asking` the questions control has not answered yet."""

    number: int
    pid: int
    pidfd: int
    socket: socket.socket
    output: int
    messages: LineBuffer = field(default_factory=LineBuffer)
    ending: Mapping[str, Any] | None = None
    exit: int | None = None
    asking: set[int] = field(default_factory=set)
    mute: bool = False
    closed: bool = False
    _text: bytes = b""

    @property
    def done(self) -> bool:
        return self.ending is not None and self.ending["type"] == "done"

    def hear(self) -> list[dict[str, Any]] | None:
        """Messages that have come; None at the end. Raises `Invalid` on what is no message."""
        if self.closed:
            return None
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return []
        except ConnectionError:
            data = b""
        return self.messages.feed(data) if data else None

    def printed(self) -> list[str] | None:
        """Lines of what it has printed since the last call; None when nothing is there. At the end `mute` is set."""
        try:
            data = b"" if self.closed else os.read(self.output, 65536)
        except BlockingIOError:
            return None
        if not data:
            self.mute = True
            return None
        *lines, self._text = (self._text + data).split(b"\n")
        if len(self._text) > _LONGEST_TEXT:
            lines, self._text = [*lines, self._text], b""
        return [text for line in lines for text in _shown(line)]

    def rest(self) -> list[str]:
        """The last line, if it never ended."""
        text, self._text = self._text, b""
        return list(_shown(text)) if text else []

    def cpu_seconds(self) -> float:
        """Processor time it took so far, with its children that have ended."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime, stime, cutime, cstime

    def reap(self) -> bool:
        """Whether it has ended; its exit status is then known."""
        pid, status, _ = os.wait4(self.pid, os.WNOHANG)
        if pid:
            self.exit = os.waitstatus_to_exitcode(status)
            self.asking.clear()
        return bool(pid)

    def close(self) -> None:
        self.closed = True
        self.socket.close()
        os.close(self.output)
        os.close(self.pidfd)


def _shown(line: bytes) -> Iterator[str]:
    """A line as a terminal would show it (what follows the last carriage return), in pieces of bounded length."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    for start in range(0, max(1, len(shown)), _LONGEST_TEXT):
        yield shown[start : start + _LONGEST_TEXT].decode(errors="replace").replace("\0", "\ufffd")


def ready(*fds: int, events: int = select.POLLIN) -> None:
    """Wait until one of the descriptors is ready (poll: select has no room for more than a thousand)."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, events)
    poll.poll()
