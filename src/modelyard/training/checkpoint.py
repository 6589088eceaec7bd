"""A training run between two epochs, as a folder: tensors by their original names in safetensors, the rest in JSON. Loading
runs no code.

`staging` writes it: each rank writes a part, of what several hold in turns, and a run resumes from it on any mesh (torch's
distributed checkpoint reads it). Where no tensor is split the files are plain ones, of one rank a single one. `progress.json`
comes last and says what must be there, so that a folder is whole or refused. Random numbers need no place here: the loop seeds
them anew at each epoch (`loop.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load as load_parts

from modelyard.errors import Damaged, Invalid
from modelyard.training.parallel import Spread

FILE, RECORD = "state.safetensors", "progress.json"
OFFSETS = "DCP_SHARDING_INFO"  # where torch's reader finds each part's place, in the file's header


@dataclass(slots=True)
class Progress:
    """Where a run stands: epochs done, rows seen by all ranks, and per epoch the metrics. Within an epoch: its steps done, and
    what they add up to over all ranks."""

    epochs: int = 0
    seen: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)


def load(folder: Path, spread: Spread, optimiser: optim.Optimizer, *, learned: bool = False) -> Progress:
    """Put a checkpoint into what this rank holds, whatever mesh it was written on. Collective. Raises `Damaged` where it is not
    whole, `Invalid` where it is of another model."""
    progress = _read(folder)
    try:
        files = sorted(folder.glob("*.safetensors"))
        saved = _contents(files)
        wanted = _wanted(saved, spread, learned)
        if spread.mesh.whole and not any(map(_places, files)):
            found = {name: tensor for path in files for name, tensor in load_file(path).items()}
            for name, tensor in wanted.items():
                tensor.copy_(found[name])
        else:
            load_parts(wanted, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=spread.mesh.whole)
    except CheckpointException as error:
        raise Damaged(f"The checkpoint cannot be resumed from: {_reasons(error)}") from error
    except (KeyError, RuntimeError, ValueError, OSError, SafetensorError) as error:
        raise Damaged(f"The checkpoint cannot be resumed from: {error}") from error
    _fill(optimiser, wanted, spread)
    return progress


def tensors(spread: Spread, optimiser: optim.Optimizer, learned: bool = False) -> dict[str, torch.Tensor]:
    """Everything that this rank holds, once: `network.NAME` and `optimiser.SLOT.NAME`."""
    held = {f"network.{name}": tensor.detach() for name, tensor in _kept(spread, learned).items()}
    for name, parameter in spread.parameters().items():
        for slot, value in optimiser.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                held[f"optimiser.{slot}.{name}"] = value.detach()
    return held


def _wanted(saved: Mapping[str, torch.Size], spread: Spread, learned: bool) -> dict[str, torch.Tensor]:
    """Places for what was saved: the network's own tensors, and new ones for the optimiser."""
    wanted = {f"network.{name}": tensor.detach() for name, tensor in _kept(spread, learned).items()}
    names = {name for name in saved if name.startswith("network.")}
    strange = sorted(names - {f"network.{name}" for name in spread.owners})
    missing = sorted(set(wanted) - names)
    shapes = [name for name, tensor in wanted.items() if name in saved and saved[name] != tensor.shape]
    if strange or missing or shapes:
        what = [f"{a.removeprefix('network.')} ({b})" for a, b in [
            *((n, "not in this model") for n in strange[:2]),
            *((n, "not in the checkpoint") for n in missing[:2]),
            *((n, f"{list(saved[n])}, here {list(wanted[n].shape)}") for n in shapes[:2]),
        ]]  # fmt: skip
        raise Invalid(f"The checkpoint is of another model: {'; '.join(what)}. Start the job anew.")
    slots = {name.split(".", 2)[1] for name in saved if name.startswith("optimiser.")}
    for name, parameter in spread.parameters().items():
        for slot in slots:
            key = f"optimiser.{slot}.{name}"
            if key in saved:
                same = saved[key] == parameter.shape
                wanted[key] = torch.zeros_like(parameter).detach() if same else torch.zeros(saved[key])
    return wanted


def _fill(optimiser: optim.Optimizer, loaded: Mapping[str, torch.Tensor], spread: Spread) -> None:
    for key, tensor in loaded.items():
        if key.startswith("optimiser."):
            _, slot, name = key.split(".", 2)
            optimiser.state[spread.parameters()[name]][slot] = tensor


def _kept(spread: Spread, learned: bool) -> dict[str, torch.Tensor]:
    """Buffers, and each parameter under its first name."""
    every = {name for part in spread.parts for name, _ in part.named_parameters(remove_duplicate=False)}
    first = {name for name, parameter in spread.parameters().items() if parameter.requires_grad or not learned}
    return {name: tensor for name, tensor in spread.state().items() if name in first or name not in every}


def _contents(files: list[Path]) -> dict[str, torch.Size]:
    """What the files hold together: the whole shape of each tensor, by its parts."""
    found: dict[str, list[int]] = {}
    for path in files:
        places = _places(path)
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                start = places[name]["saved_offsets"] if places else [0] * len(shape)
                ends = [a + n for a, n in zip(start, shape, strict=True)]
                found[name] = [max(pair) for pair in zip(found.get(name, ends), ends, strict=True)]
    return {name: torch.Size(shape) for name, shape in found.items()}


def _places(path: Path) -> dict[str, Any]:
    """Where in whole tensors those of a file begin; nothing where they are whole themselves."""
    with safe_open(path, framework="pt") as file:
        places: dict[str, Any] = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
    return places


def _reasons(error: CheckpointException) -> str:
    return "; ".join(sorted({str(wrapped[0]) for wrapped in error.failures.values()}))


def _read(folder: Path) -> Progress:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text())
        files, progress = dict(record["files"]), Progress(**record["progress"])
    except FileNotFoundError:
        raise Damaged(f"The checkpoint was not written to its end: it has no {RECORD}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"The checkpoint's {RECORD} cannot be read: {error}.") from error
    for name, size in files.items():
        path = folder / name
        there = path.stat().st_size if path.is_file() else None
        if there != size:
            raise Damaged(f"The checkpoint is not whole: '{name}' has {'no' if there is None else there} of {size} bytes.")
    return progress
