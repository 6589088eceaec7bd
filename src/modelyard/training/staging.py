"""A checkpoint of this moment: each rank copies what it holds, and a thread writes the copy while training goes on.

`loop` takes it, `keeping` has it written, `checkpoint` reads it again. The copying is all that training waits for. A rank's
file gets its name once it is whole, or one beside it says what went wrong: so rank 0, which records the whole, hears of the
others without a word over the network that training uses. Nothing is a checkpoint before `progress.json` is there.
"""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import optim
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from modelyard.training.checkpoint import FILE, OFFSETS, RECORD, Progress, tensors
from modelyard.training.mesh import Mesh, Place
from modelyard.training.parallel import Spread
from modelyard.training.parallel.clip import local

# Rank 0 waits so many seconds for the others' parts, or so many times as long as its own took: a bound, not a plan.
PATIENCE, _TIMES = 120.0, 20
_LOOK = 0.02
_LAST = "last-checkpoint"

Write = Callable[[Path], None]


class Stage:
    """This rank's part of checkpoints, one at a time: what `take` returned must have written before it is called again.

    The copies lie in the same memory every time: fresh memory takes eight times as long as the copying. Of parameters those
    alone are kept that learn where `learned`."""

    def __init__(self, spread: Spread, optimiser: optim.Optimizer, *, learned: bool = False) -> None:
        self._spread = spread
        self._optimiser = optimiser
        self._learned = learned
        self._held: dict[str, torch.Tensor] = {}
        self._starts: dict[str, list[int]] = {}
        self._form: dict[str, tuple[torch.Size, torch.dtype, list[int]]] = {}

    def take(self, folder: Path, progress: Progress) -> Write:
        """What writes a checkpoint of this moment into `folder`, the same for all ranks, whatever training changes meanwhile.
        Collective, what it returns is not; that raises on rank 0 where any rank's part could not be written."""
        spread = self._spread
        if error := _begin(folder, spread):
            return partial(_fail, error) if spread.gang.rank == 0 else lambda folder: None
        copied = self._copy()
        if spread.gang.rank:
            return lambda folder: _tell(folder, spread.gang.rank, copied or self._write(folder))
        return partial(self._whole, deepcopy(progress), copied)

    def _copy(self) -> Exception | None:
        """Into the memory of the last time where that fits; what went wrong, such as too little of it. What another rank writes
        by now, or nobody, is let go of."""
        starts: dict[str, list[int]] = {}
        try:
            for name, part, start in _own(self._spread, self._optimiser, self._learned):
                there = self._held.get(name)
                if there is None or (there.shape, there.dtype) != (part.shape, part.dtype):
                    there = self._held[name] = torch.empty(part.shape, dtype=part.dtype)
                there.copy_(part)
                starts[name] = start
        except (RuntimeError, MemoryError) as error:
            self._held.clear()
            return error
        self._held, self._starts = {name: self._held[name] for name in starts}, starts
        return None

    def _write(self, folder: Path) -> Exception | None:
        """This rank's file; what went wrong, which leaves nothing of it."""
        path = folder / (FILE if self._spread.mesh.ranks == 1 else _part(self._spread.gang.rank))
        unfinished = path.with_suffix(".part")
        try:
            self._fill(unfinished)
            unfinished.rename(path)
        except (OSError, SafetensorError) as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)  # on a full disk it is in the way of saying so
            return error
        return None

    def _fill(self, path: Path) -> None:
        """Write over what is left of the last time, where that had the same form: memory for the pages of a new file can take
        longer than all the writing."""
        form = {name: (tensor.shape, tensor.dtype, self._starts[name]) for name, tensor in self._held.items()}
        if form != self._form or not path.is_file():
            path.unlink(missing_ok=True)
            places = {name: {"saved_offsets": start} for name, start in self._starts.items()}
            save_file(self._held, path, None if self._spread.mesh.whole else {OFFSETS: json.dumps(places)})
            path.chmod(0o644)  # safetensors writes for the owner alone
            self._form = form
            return
        with FileIO(path, "r+") as file:
            for name, start in _starts(file).items():
                file.seek(start)
                view = self._held[name].reshape(-1).view(torch.uint8).numpy().data
                while view:
                    view = view[file.write(view) or 0 :]

    def _whole(self, progress: Progress, copied: Exception | None, folder: Path) -> None:
        """Rank 0's file, the others', and the record of all."""
        spread, began = self._spread, time.monotonic()
        error = copied or self._write(folder)
        failed = await_parts(folder, range(1, spread.mesh.ranks), max(PATIENCE, _TIMES * (time.monotonic() - began)))
        if error or failed:
            raise RuntimeError("; ".join([*([f"rank 0: {error}"] if error else []), *failed])) from error
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        text = json.dumps({"progress": asdict(progress), "mesh": str(spread.mesh), "files": files}, indent=1)
        (folder / RECORD).write_text(text)


def save(folder: Path, spread: Spread, optimiser: optim.Optimizer, progress: Progress, *, learned: bool = False) -> None:
    """Stage and write in one go. Collective; whole when rank 0 returns."""
    Stage(spread, optimiser, learned=learned).take(folder, progress)(folder)


class Turns:
    """Who writes what several ranks hold: they take turns, so that each writes about as many bytes. All ranks that hold a part
    must ask of the same parts in the same order."""

    def __init__(self, mesh: Mesh, place: Place) -> None:
        self._mesh, self._place = mesh, place
        self._written: dict[tuple[str, ...], list[int]] = {}

    def mine(self, tensor: torch.Tensor, *, same: bool) -> bool:
        """Whether this rank, of all that hold this part of `tensor`, writes it. `same`: along `data` they are known to hold the
        same; what is not, such as batch statistics, is the first one's."""
        whole = [axis for axis in ("data", "shard", "tensor") if axis not in _split(tensor)]
        taking = tuple(whole if isinstance(tensor, DTensor) else ["data"] if same else [])
        if any(getattr(self._place, axis) for axis in whole if axis not in taking):
            return False
        number, copies = 0, 1
        for axis in taking:
            number = number * getattr(self._mesh, axis) + getattr(self._place, axis)
            copies *= getattr(self._mesh, axis)
        written = self._written.setdefault(taking, [0] * copies)
        turn = written.index(min(written))
        written[turn] += local(tensor).nbytes
        return turn == number


def _split(tensor: torch.Tensor) -> set[str]:
    """The axes of the mesh along which each rank holds another part of it."""
    if not isinstance(tensor, DTensor):
        return set()
    names = tensor.device_mesh.mesh_dim_names or ()
    return {name for name, kind in zip(names, tensor.placements, strict=True) if not kind.is_replicate()}


def await_parts(folder: Path, ranks: range, patience: float) -> list[str]:
    """Return when the part of each of `ranks` is whole, or has failed: what went wrong, by rank."""
    failed, until = [], time.monotonic() + patience
    for rank in ranks:
        while not (folder / _part(rank)).exists():
            if (said := folder / _failure(rank)).exists():
                failed.append(f"rank {rank}: {said.read_text() or 'it could not write its part'}")
                break
            if time.monotonic() > until:
                failed.append(f"rank {rank}: its part did not come within {patience:.0f} s")
                break
            time.sleep(_LOOK)
    return failed


def _own(spread: Spread, optimiser: optim.Optimizer, learned: bool) -> Iterator[tuple[str, torch.Tensor, list[int]]]:
    """What this rank writes: name, the part it holds, and where in the whole tensor that begins."""
    turns, parameters = Turns(spread.mesh, spread.place), spread.parameters()
    for name, tensor in tensors(spread, optimiser, learned).items():
        part = local(tensor)
        same = name.startswith("optimiser.") or name.removeprefix("network.") in parameters
        if turns.mine(tensor, same=same) and (part.numel() or not tensor.numel()):
            yield name, part, _start(tensor)


def _start(tensor: torch.Tensor) -> list[int]:
    if not isinstance(tensor, DTensor):
        return [0] * tensor.dim()
    return list(compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1])


def set_aside(folder: Path) -> None:
    """Nobody reads this checkpoint's folder any more; the next one is written over its files."""
    shutil.rmtree(last := folder.with_name(_LAST), ignore_errors=True)
    try:
        folder.rename(last)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)


def _reuse(folder: Path) -> None:
    """Take the last one's files, none of which is whole now."""
    last = folder.with_name(_LAST)
    try:
        for path in last.iterdir():
            if path.suffix == ".safetensors":
                path.rename(path.with_suffix(".part"))
            else:
                path.unlink()
        last.rename(folder)
    except OSError:
        shutil.rmtree(last, ignore_errors=True)


def _begin(folder: Path, spread: Spread) -> Exception | None:
    """Have rank 0 make `folder` before the others go on; where it cannot, all know."""
    error: OSError | None = None
    if spread.gang.rank == 0:
        try:
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed in the middle of it
            _reuse(folder)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as found:
            error = found
    (count,) = spread.gang.sum(1 if error else 0)
    return error or (RuntimeError("rank 0 could not begin it") if count else None)


def _tell(folder: Path, rank: int, error: Exception | None) -> None:
    """Leave word of what went wrong, if only by a name: on a full disk a text may find no room."""
    if error is None or not folder.exists():  # rank 0 waits no longer
        return
    unfinished = folder / f"{_failure(rank)}.part"
    with unfinished.open("w") as file, suppress(OSError):
        file.write(str(error)[:500])
        file.flush()
    unfinished.rename(folder / _failure(rank))


def _starts(file: FileIO) -> dict[str, int]:
    """Where each tensor's bytes begin in a file of safetensors."""
    (size,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(size))
    return {name: 8 + size + told["data_offsets"][0] for name, told in header.items() if name != "__metadata__"}


def _part(rank: int) -> str:
    return f"rank-{rank}.safetensors"


def _failure(rank: int) -> str:
    return f"rank-{rank}.failed"


def _fail(error: Exception, folder: Path) -> None:
    raise error
