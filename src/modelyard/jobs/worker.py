"""The main program in a gang's sandbox; `LocalExecutor` starts it.

    python -m modelyard.jobs.worker FD

It reads the gang from the socket FD, imports the kind's function once and hands both to `launcher`. It knows no database, no
project and no network.
"""

from __future__ import annotations

import socket
import sys
import traceback
from typing import Any

from modelyard import plugins
from modelyard.errors import Internal, ModelyardError
from modelyard.jobs.launcher import ControlGone, Launcher
from modelyard.jobs.lines import LineBuffer
from modelyard.jobs.types import Gang
from modelyard.kinds import Run


def main(fd: int) -> None:
    """Run the gang that control describes on socket `fd`."""
    control, buffer = socket.socket(fileno=fd), LineBuffer()
    control.set_inheritable(False)
    try:
        gang = _read_gang(control, buffer)
        control.setblocking(False)
        launcher = Launcher(control, gang, buffer)
        try:
            function, config = _load(gang)
        except ModelyardError as error:
            launcher.fail(error)
        else:
            launcher.run(function, config)
    except ControlGone:
        # The ranks die with this process.
        sys.exit("control is gone")


def _read_gang(control: socket.socket, buffer: LineBuffer) -> Gang:
    while data := control.recv(65536):
        if messages := buffer.feed(data):
            return Gang.from_wire(messages[0])
    raise ControlGone


def _load(gang: Gang) -> tuple[Run, Any]:
    """The kind's function and its configuration. Raises what is to be told to the submitter."""
    try:
        return plugins.load(gang.run), plugins.load(gang.config_path).model_validate(dict(gang.config))
    except ModelyardError:
        raise
    except Exception as error:
        tail = traceback.format_exc()[-2000:]
        raise Internal(f"The job kind could not be loaded: {type(error).__name__}: {error}\n{tail}") from error


if __name__ == "__main__":
    main(int(sys.argv[1]))
