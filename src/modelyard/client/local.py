"""A platform of one's own for as long as a block lasts: for notebooks, examples, tests and the demo.

`modelyard up` in a process of its own, spoken to over HTTP like any other; nothing of it is left when the block ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelyard.client.profile import read
from modelyard.client.yard import Yard
from modelyard.errors import Crashed, from_wire
from modelyard.plugins import load

# What would make the new platform another one than the one that is asked for.
_NOT_INHERITED = frozenset({"MODELYARD_DATA", "MODELYARD_HOST", "MODELYARD_PORT", "MODELYARD_URL", "MODELYARD_KEY"})
_GRACE = 30.0


@contextmanager
def started(data: str | Path) -> Iterator[Yard]:
    """Start a platform on the folder `data` and a free port of this machine; yields its `Yard` with the admin key.

    Call it from the main thread: the platform ends with the thread that started it. Raises what `modelyard up` raises.
    """
    folder = Path(data).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "modelyard", "up", "--data", str(folder), "--port", "0", "--json"]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    prepare = load("modelyard.jobs.processes:die_with_parent")
    with (folder / "up.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=environment, preexec_fn=prepare)
    try:
        assert process.stdout is not None
        url = _url(process.stdout.readline(), folder)
        profile = read(folder / "profile.json")
        with Yard(url, profile.key if profile else None, folder) as yard:
            yield yard
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _url(line: bytes, folder: Path) -> str:
    """The URL in the one document that `up --json` prints once it answers. Raises the error that it printed instead."""
    try:
        said = json.loads(line)
    except ValueError as error:
        raise Crashed(f"The platform ended before it answered; {folder / 'up.log'} says why.") from error
    if "error" in said:
        raise from_wire(said["error"]["code"], said["error"]["message"])
    return str(said["url"])
