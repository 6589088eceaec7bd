"""Work in a process of its own, for whoever measures what a process takes, or needs a library that would stay in this one.
The module that is run says what it found as JSON, in its last line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

_BEAT = 0.2  # seconds


def aside(module: str, words: Sequence[str], check: Callable[[], None], longest: float) -> Any:
    """What a fresh process that runs a module says last, as JSON; None where it does not end well within `longest` seconds."""
    with tempfile.TemporaryFile() as said:
        ended = _ran([sys.executable, "-P", "-m", module, *words], said, check, longest)
        said.seek(0)
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(said.read().splitlines()[-1]) if ended else None
    return None


def _ran(command: Sequence[str], said: IO[bytes], check: Callable[[], None], longest: float) -> bool:
    # Gangs keep memory that was freed; replicas give it back.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, env=environment)
    except OSError:
        return False
    until = time.monotonic() + longest
    try:
        while process.poll() is None and time.monotonic() < until:
            check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_BEAT)
    finally:
        process.kill()
        process.wait()
    return process.returncode == 0
