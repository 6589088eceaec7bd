"""`python -m modelyard` and the `modelyard` script: the command line."""

from __future__ import annotations

import sys

from modelyard.cli import main

if __name__ == "__main__":
    sys.exit(main())
