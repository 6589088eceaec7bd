"""`python -m modelyard.app.process NAME DATA …`: how the supervisor starts the platform's own processes.

The settings come whole, as JSON in one variable of the environment: a child never reads them anew and so cannot differ from its
parent, and no other user can read a database's password in the list of processes. The data folder is named for those who look
at that list.
"""

from __future__ import annotations

import json
import os
import sys

from modelyard.errors import Invalid, ModelyardError
from modelyard.plugins import load
from modelyard.settings import Settings
from modelyard.tenancy.door import body

SETTINGS = "_MODELYARD_SETTINGS"


def main(arguments: list[str]) -> int:
    """Run one process to its end; an error is one JSON document on stdout, exit 1."""
    name, rest = arguments[0], arguments[2:]
    settings = Settings.model_validate_json(os.environ.pop(SETTINGS))
    try:
        match name:
            case "migrate":
                load("modelyard.app.migrate:run")(settings, *rest)
            case "control":
                load("modelyard.app.control:run")(settings)
            case "gateway":
                load("modelyard.app.gateway:run")(settings, *map(int, rest))
            case other:
                raise Invalid(f"There is no process '{other}'; there are migrate, control and gateway.")
    except ModelyardError as error:
        sys.stdout.write(json.dumps(body(error)) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
