"""A folder of images by class: class/name.png. Called by `importing.run` for uploaded files.

Every file is opened once while the dataset is written, so an unreadable one is named and nothing is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from modelyard.data.datasets import Feature
from modelyard.data.writing import Sample, Source
from modelyard.errors import Invalid
from modelyard.kinds import ArtefactView

ENDINGS = (".png", ".jpg", ".jpeg")
_LITTER = ("Thumbs.db", "desktop.ini")
MOST_FILE_BYTES = 64 << 20


def image_folder(view: ArtefactView) -> Source:
    """Raises `Invalid` naming the first file that is out of place."""
    sizes = view.files  # asked for once: a view may walk its folder each time
    paths = [path for path in sorted(sizes) if not is_litter(path)]
    for path in paths:
        if len(PurePosixPath(path).parts) != 2:
            raise Invalid(
                f"'{path}' is out of place; expected class/name.png (or .jpg): one folder a class. Nothing was imported."
            )
        if not path.lower().endswith(ENDINGS):
            raise Invalid(f"'{path}' is no image; expected a file ending in {', '.join(ENDINGS)}. Nothing was imported.")
        if sizes[path] > MOST_FILE_BYTES:
            raise Invalid(f"'{path}' has {sizes[path]:,} bytes; an image may have {MOST_FILE_BYTES:,}. Nothing was imported.")
    names = tuple(sorted({path.partition("/")[0] for path in paths}))
    if len(names) < 2:
        raise Invalid(
            f"There are images of {len(names)} class(es) {names}; expected at least two folders. Nothing was imported."
        )
    features = {"image": Feature(type="image"), "label": Feature(type="label", names=names)}
    return Source(
        features,
        "label",
        "image-classification",
        len(paths),
        _samples(view, paths, names),
        {"from": "files", "files": view.hash},
    )


def is_litter(path: str) -> bool:
    """Files that file managers leave behind."""
    parts = PurePosixPath(path).parts
    return parts[-1] in _LITTER or any(part.startswith(".") for part in parts)


def _samples(view: ArtefactView, paths: list[str], names: tuple[str, ...]) -> Iterator[Sample]:
    positions = {name: position for position, name in enumerate(names)}
    for path in paths:
        with view.open(path) as file:
            data = file.read()
        yield Sample(data, {"image": data, "label": positions[path.partition("/")[0]]}, f"'{path}'")
