"""Rows that a recipe makes of a whole split (tokens of texts) are made once a gang: rank 0 writes them into the job's work
folder, and every rank maps that file. They are in main memory once a node, as far as they are read, and not once a rank.

`loop` puts it round `Plan.read`. Whoever waits says that it lives, and sees where the job was cancelled; what rank 0 was
refused the others are refused too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.errors import ModelyardError, from_wire
from modelyard.kinds import JobContext
from modelyard.tensors import Array
from modelyard.training.gang import Gang
from modelyard.training.recipes import Read

_LOOK = 0.1  # seconds between two looks at whether they are there
_SAID, _INPUTS, _TARGETS = "said.json", "inputs.npy", "targets.npy"


def once(read: Read, gang: Gang, context: JobContext) -> Read:
    """`read`, by rank 0 for all; the others call it as often, and get the same. Collective."""
    if gang.world == 1:
        return read

    def shared(dataset: Dataset, split: str, check: Callable[[], None]) -> tuple[Array, Array]:
        folder = context.work / f"rows-{split}"
        if gang.rank == 0:  # whatever lies there is of an earlier run in this folder
            folder.mkdir(exist_ok=True)
            (folder / _SAID).unlink(missing_ok=True)
        gang.sum(0)
        if gang.rank == 0:
            _make(read, folder, dataset, split, check)
        else:
            _await(folder, check)
        inputs, targets = (np.load(folder / name, mmap_mode="r") for name in (_INPUTS, _TARGETS))
        return inputs, targets

    return shared


def _make(read: Read, folder: Path, dataset: Dataset, split: str, check: Callable[[], None]) -> None:
    try:
        for name, made in zip((_INPUTS, _TARGETS), read(dataset, split, check), strict=True):
            np.save(folder / f"part-{name}", made)
            (folder / f"part-{name}").replace(folder / name)
    except ModelyardError as error:
        _say(folder, {"code": error.code, "message": error.message})
        raise
    _say(folder, {})


def _say(folder: Path, error: dict[str, str]) -> None:
    (folder / f"part-{_SAID}").write_text(json.dumps(error))
    (folder / f"part-{_SAID}").replace(folder / _SAID)


def _await(folder: Path, check: Callable[[], None]) -> None:
    while not (folder / _SAID).exists():
        check()
        time.sleep(_LOOK)
    if error := json.loads((folder / _SAID).read_text()):
        raise from_wire(error["code"], error["message"])
