"""Where a model's files may lie: inside its artefact, plain, reached without links. Engines and the import of models ask
here before a library opens a path that a file names, or a zip that torch is to have written.
"""

from __future__ import annotations

import struct
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath

from modelyard.errors import Invalid, Unsafe

# What zipfile raises of a file that is not as it says.
UNREADABLE = (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, ValueError, struct.error)


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


def stored(path: Path) -> list[str]:
    """The names in a zip as torch writes it: entries as they are, each once. Raises `Unsafe` for what is packed, repeated or
    larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except UNREADABLE as error:
        raise Unsafe(f"'{path.name}' was refused unread: {error}.") from error
    packed = [e.filename for e in entries if e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size]
    repeated = [name for name, times in Counter(e.filename for e in entries).items() if times > 1]
    if packed or repeated or sum(e.file_size for e in entries) > path.stat().st_size:
        raise Unsafe(
            f"'{path.name}' was refused unread: its zip holds packed or repeated entries, which torch never writes: "
            f"{', '.join((packed or repeated)[:3])}."
        )
    return [e.filename for e in entries]
