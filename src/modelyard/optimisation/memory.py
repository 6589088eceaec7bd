"""How much memory serving a version takes: a process of its own loads the engine as a replica does, runs batches, and tells by
how much it grew. Called by `optimise`; that process is `python -m modelyard.optimisation.memory FOLDER BATCH…`.

What counts is what a replica holds that another could not share: its own pages, weights, buffers and what the engine's library
sets up, and the version's files as far as they are mapped; not the code of libraries, which all replicas of a machine share.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.engines.aside import aside
from modelyard.engines.base import ENGINES, ModelCard
from modelyard.tensors import Array

_STEP = 1 << 16  # bytes; two runs of the same differ by a few pages
_LONGEST = 60.0  # seconds


def memory(folder: Path, batches: Sequence[Mapping[str, Array]], work: Path, check: Callable[[], None]) -> float:
    """Bytes that a process holds once it has run the version in `folder` on `batches`, beyond those of the same process before
    it loaded the engine. NaN where it does not come so far. `check` is called meanwhile."""
    names = [spec.name for spec in ModelCard.load(folder).inputs]
    with tempfile.TemporaryDirectory(dir=work) as kept:
        files = [f"{kept}/{number}.npz" for number in range(len(batches))]
        for file, batch in zip(files, batches, strict=True):
            np.savez(file, *(batch[name] for name in names))
        found = aside("modelyard.optimisation.memory", [str(folder), *files], check, _LONGEST)
    return found if isinstance(found, int) else float("nan")


def held(folder: Path) -> int:
    """Bytes that are this process's alone, and those of files in `folder` that it has mapped: of each mapping that the kernel
    lists (proc_pid_smaps(5)) what is anonymous, or all that is resident."""
    total, within, own = 0, False, f" {folder.resolve()}/"
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        name, _, value = line.partition(" ")
        if not name.endswith(":"):  # a mapping's first line, which ends in its file
            within = own in value
        elif name == ("Rss:" if within else "Anonymous:"):
            total += int(value.split()[0]) << 10
    return total


def grown(before: int, folder: Path) -> int:
    """By how many bytes `held` has grown, to the nearest 64 KiB: the same comes to the same then."""
    return round((held(folder) - before) / _STEP) * _STEP


def main(folder: Path, files: Sequence[Path]) -> int:
    card = ModelCard.load(folder)
    batches = []
    for file in files:
        with np.load(file) as arrays:  # which reads no pickles
            batches.append({spec.name: arrays[f"arr_{number}"] for number, spec in enumerate(card.inputs)})
    before = held(folder)
    engine: Any = ENGINES.get(card.engines[0])(folder, card)
    for batch in batches:
        engine.forward(batch)
    return grown(before, folder)


if __name__ == "__main__":
    _folder, *_files = map(Path, sys.argv[1:])
    sys.stdout.write(f"{json.dumps(main(_folder, _files))}\n")
