"""`python -m modelyard.app.process NAME SETTINGS …`: how the supervisor starts the platform's own processes.

The settings come whole, as JSON: a child never reads the environment or a file anew and so cannot differ from its parent.
"""

from __future__ import annotations

import json
import sys

from modelyard.errors import Invalid, ModelyardError
from modelyard.plugins import load
from modelyard.settings import Settings
from modelyard.tenancy.door import body


def main(arguments: list[str]) -> int:
    """Run one process to its end; an error is one JSON document on stdout, exit 1."""
    name, settings, rest = arguments[0], Settings.model_validate_json(arguments[1]), arguments[2:]
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
