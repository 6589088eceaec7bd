"""`python -m modelyard.migrations "what changed"`: write the next migration from the difference to the tables."""

from __future__ import annotations

import subprocess
import sys

from modelyard.migrations import generate


def main() -> int:
    message = " ".join(sys.argv[1:]).strip()
    if not message:
        sys.stderr.write('Say what changed: make migration MESSAGE="add a column".\n')
        return 2
    path = generate(message)
    if path is None:
        sys.stdout.write("The tables are as the newest migration leaves them: nothing to write.\n")
        return 0
    kept = [line for line in path.read_text().splitlines() if "# ### " not in line]  # Alembic's own remarks
    path.write_text("\n".join(kept) + "\n")
    for step in (["format", "--quiet"], ["check", "--fix", "--quiet"], ["format", "--quiet"]):
        subprocess.run([sys.executable, "-m", "ruff", *step, str(path)], check=True)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
