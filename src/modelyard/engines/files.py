"""Where a model's files may lie: inside its artefact, plain, reached without links. Engines and the import of models ask
here before a library opens a path that a file names.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from modelyard.errors import Invalid, Unsafe


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, a plain file reached without links. Raises `Unsafe` for any way out, `Invalid` where it is missing."""
    relative = PurePosixPath(name)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
        raise Unsafe(f"'{name}' is not a path inside the artefact; expected a relative one without '..'.")
    path = folder
    for part in relative.parts:
        path = path / part
        if path.is_symlink():
            raise Unsafe(f"'{name}' is a link; expected a plain file in the artefact.")
    if not path.is_file():
        raise Invalid(f"There is no file '{name}' in the artefact.")
    return path
