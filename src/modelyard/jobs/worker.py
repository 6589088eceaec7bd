"""The main program in a gang's sandbox; `LocalExecutor` starts it.

    python -m modelyard.jobs.worker FD

It reads the gang from the socket FD, imports the kind's function once and hands both to `launcher`. Where the gang is lost it
waits for the next attempt, for which all is loaded. It knows no database, no project and no network.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

from modelyard.errors import ModelyardError
from modelyard.jobs import confine
from modelyard.jobs.launcher import ControlGone, Launcher
from modelyard.jobs.lines import LineBuffer
from modelyard.jobs.processes import become_subreaper, cpu_seconds
from modelyard.jobs.rank import load
from modelyard.jobs.types import Gang


def main(fd: int) -> None:
    """Run the gang that control describes on socket `fd`."""
    confine.give_up()
    confine.make_way(os.nice(0))  # as a session, too
    confine.hide()
    become_subreaper()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one signal with a handler, which a rank could reach us by
    control, buffer = socket.socket(fileno=fd), LineBuffer()
    control.set_inheritable(False)
    try:
        charged = 0.0
        first, *more = _read(control, buffer)
        while _run(control, Gang.from_wire(first), buffer, more, charged):
            charged = cpu_seconds()
            first, more = _next(control, buffer)
    except ControlGone:
        # The ranks die with this process.
        sys.exit("control is gone")


def _run(control: socket.socket, gang: Gang, buffer: LineBuffer, more: list[dict[str, Any]], charged: float) -> bool:
    """Run one attempt; whether another may follow."""
    control.setblocking(False)
    launcher = Launcher(control, gang, buffer, more, charged)
    try:
        function, config = load(gang)
    except ModelyardError as error:
        launcher.fail(error)
        return False
    return launcher.run(function, config)


def _next(control: socket.socket, buffer: LineBuffer) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The next attempt, and what follows it. What is still said to the last one is of no use to anybody."""
    control.setblocking(True)
    while True:
        messages = _read(control, buffer)
        for number, message in enumerate(messages):
            if "again" in message:
                return message["again"], messages[number + 1 :]


def _read(control: socket.socket, buffer: LineBuffer) -> list[dict[str, Any]]:
    """The first messages: the gang, and perhaps already more."""
    while data := control.recv(65536):
        if messages := buffer.feed(data):
            return messages
    raise ControlGone


if __name__ == "__main__":
    main(int(sys.argv[1]))
