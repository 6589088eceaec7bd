"""`python -m modelyard` and the `modelyard` script: the command line."""

from __future__ import annotations

import gc
import sys

from modelyard import cli


def main() -> int:
    """Run this process's command line; its exit code."""
    try:
        return cli.main()
    finally:
        gc.freeze()  # what is left goes with the process: to look for cycles in it takes a tenth of a short command's time


if __name__ == "__main__":
    sys.exit(main())
