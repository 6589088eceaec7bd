"""Which split a sample belongs to: a pure function of its content, so that nothing else can move it.

Equal samples always share a split (no leak from training into a report), and a dataset that grows or is reordered keeps every
sample where it was. What a source itself keeps apart (its validation and test files) stays apart. Used by dataset import;
`train` learns, `calibrate` sets quantisation ranges, `select` chooses between models and epochs, `report` is looked at once, at
the end.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate
from pathlib import PurePosixPath

from modelyard.errors import Invalid

SHARES = {"train": 60, "calibrate": 10, "select": 15, "report": 15}
SPLITS = tuple(SHARES)
_ENDS = tuple(accumulate(SHARES.values()))
# What others call a split, and which of ours it becomes.
NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("calibrate", "calibration"), "calibrate"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "select"),
    **dict.fromkeys(("test", "testing"), "report"),
}
_PART = re.compile(rf"({'|'.join(NAMES)})([-_.]\d.*)?")  # train, train-00000-of-00003
_DOMAIN = b"modelyard split\0"  # so that the split says nothing about other uses of the content's hash


def split_of(content: bytes) -> str:
    """The split of the sample with this content: what a model would be shown of it, never its label."""
    digest = hashlib.sha256(_DOMAIN + content).digest()
    percent = int.from_bytes(digest[:8], "big") * _ENDS[-1] >> 64
    return next(split for split, end in zip(SPLITS, _ENDS, strict=True) if percent < end)


def place(content: bytes, given: str | None, own: Collection[str]) -> str:
    """Where a sample goes that its source put in `given`: there, if the source keeps that split apart (`own`). The rest goes by
    content, and what would thereby join a split of the source's own stays in train."""
    if given in own:
        return str(given)
    split = split_of(content)
    return "train" if split in own else split


def by_name(paths: Iterable[str]) -> Mapping[str, str | None]:
    """The split that each file is of by its name or its folder's: train.jsonl, data/test-00000-of-00001.parquet,
    validation/0.parquet. None for every one where no file is of a train split. Raises `Invalid` where only some are."""
    named = {path: _split_named(path) for path in paths}
    if "train" not in named.values():
        return dict.fromkeys(named)
    unnamed = [path for path, split in named.items() if split is None]
    if unnamed:
        raise Invalid(
            f"'{unnamed[0]}' is of no split that is known, while other files are named train; expected one of "
            f"{', '.join(NAMES)}: leave it out or give it such a name. Nothing was imported."
        )
    return named


def _split_named(path: str) -> str | None:
    *folders, name = PurePosixPath(path).parts
    for part in (name.rpartition(".")[0], *reversed(folders)):
        if match := _PART.fullmatch(part.lower()):
            return NAMES[match[1]]
    return None


def kept_apart(given: Iterable[str | None]) -> frozenset[str]:
    """The splits, but for train, that a source with these keeps apart."""
    return frozenset(split for split in given if split and split != "train")
