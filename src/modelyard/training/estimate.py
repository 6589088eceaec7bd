"""How much memory a rank will need, before it takes its first step: parameters, gradients, optimiser state, activations,
and the copy of what a checkpoint holds.

`prepare` measures what a few rows leave behind in one forward, `estimate` works out a whole micro-batch, `check` refuses what
cannot fit, with the numbers. The estimate is what is needed at the least: buffers of libraries and of the exchange come on top.
"""

from __future__ import annotations

import resource
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelyard.errors import Invalid


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes that a forward keeps for its backward: `fixed`, and so many a row."""

    fixed: float = 0.0
    row: float = 0.0

    def of(self, rows: int) -> int:
        return int(self.fixed + self.row * rows)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one rank. `process` is what it holds beside its model already; `checkpoint` the copy that lies in main memory
    from the first checkpoint on; `rows` those of a micro-batch."""

    process: int
    parameters: int
    gradients: int
    optimiser: int
    activations: int
    checkpoint: int
    rows: int

    @property
    def total(self) -> int:
        return self.process + self.parameters + self.gradients + self.optimiser + self.activations + self.checkpoint

    def facts(self, bound: int | None) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "bound": bound}

    def shown(self) -> str:
        """'parameters 4.0 MB + gradients 4.0 MB + … = 1.2 GB'."""
        parts = [
            f"parameters {_size(self.parameters)}",
            f"gradients {_size(self.gradients)}",
            f"optimiser state {_size(self.optimiser)}",
            f"activations of {self.rows} rows {_size(self.activations)}",
            *([f"a checkpoint's copy {_size(self.checkpoint)}"] if self.checkpoint else []),
            f"the process itself {_size(self.process)}",
        ]
        return f"{' + '.join(parts)} = {_size(self.total)}"


def estimate(
    *,
    parameters: int,
    learning: int,
    slots: int,
    activations: Activations,
    rows: int,
    copied: int = 0,
    parts: int = 1,
    slices: int = 1,
    process: int = 0,
) -> Estimate:
    """`parameters` and `learning` (those with gradients) in bytes of the whole model, `slots` tensors that the optimiser keeps
    of each, `rows` of the micro-batch, `copied` bytes that a checkpoint takes of the whole. `parts`: ranks that hold the model
    together; `slices`: those that compute a row together. What is split is taken to be split evenly."""
    kept = activations.of(rows) // slices
    optimiser = slots * learning // parts
    return Estimate(process, parameters // parts, learning // parts, optimiser, kept, copied // parts, rows)


def check(found: Estimate, bound: int | None) -> None:
    """Raises `Invalid` where a rank needs more than it may take (None: as much as there is)."""
    if bound is not None and found.total > bound:
        raise Invalid(
            f"The model cannot be trained so: a rank needs at least {found.shown()} and may take {_size(bound)}. Use a smaller "
            "batch_size, more micro_batches, recompute, or a mesh that splits the model over more ranks."
        )


def measure(network: nn.Module, inputs: torch.Tensor, loss: Callable[[torch.Tensor], torch.Tensor]) -> int:
    """Bytes that the network keeps of `inputs` for a backward, which is not run. The network is left as it was: nothing is
    drawn at random and no statistics are kept."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    training = network.training
    network.eval()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss(network(inputs))
    finally:
        network.train(training)
    return sum(kept.values())


def fit(few: int, at_few: int, more: int, at_more: int) -> Activations:
    """A line through two measurements: rows, bytes; rows, bytes."""
    row = max(0.0, (at_more - at_few) / (more - few)) if more > few else at_few / few
    return Activations(max(0.0, at_few - row * few), row)


def held(status: Path = Path("/proc/self/status")) -> int:
    """Bytes of private memory this process has, which is what its bound is of."""
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:")), 0)


def bound() -> int | None:
    """Bytes of main memory that a rank may take by its limits; None: no limit."""
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def of(device: torch.device) -> int | None:
    """Bytes that a rank on `device` may take: the GPU's, or of main memory by its limits; None: no limit."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else bound()


def spare(machine: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of main memory that this process may still take: of its bound, of what the machine has left; None: not known."""
    lines = machine.read_text().splitlines() if machine.is_file() else []
    left = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    most = bound()
    return min([*left, *([] if most is None else [max(0, most - held())])], default=None)


def lack(needed: int, left: int | None) -> str | None:
    """What is needed and what there is, in words, where that is less; None where there is room."""
    return None if left is None or needed <= left else f"{_size(needed)}, where {_size(left)} are left"


def no_memory(error: Exception) -> bool:
    """Whether an exception says that memory ran out, the machine's or a device's."""
    return "allocate memory" in str(error) or "out of memory" in str(error)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
