"""The length of the whole gradient, wherever its parts are, and how to shorten it."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite, sqrt

import torch
from torch.distributed.tensor import DTensor

from modelyard.training.gang import Gang

_TINY = 1e-6  # as in torch.nn.utils.clip_grad_norm_, so that clipping gives the same numbers


def clip(parameters: Iterable[torch.Tensor], most: float, gang: Gang, copies: int) -> float:
    """Shorten the gradients together to length `most`; returns their length before. `copies`: ranks that hold each parameter
    were none of them split; the same on all ranks."""
    own = [(p.grad, local(p.grad)) for p in parameters if p.grad is not None]
    squares = [torch.linalg.vector_norm(part, dtype=torch.float64).square() * (parts(grad) / copies) for grad, part in own]
    (total,) = gang.sum(float(torch.stack(squares).sum()) if squares else 0.0)
    length = sqrt(total) if isfinite(total) else total
    scale = most / (length + _TINY)
    if scale < 1:
        for _, part in own:
            part.mul_(scale)
    return length


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def parts(tensor: torch.Tensor) -> int:
    """Over how many ranks one copy of it is spread."""
    if not isinstance(tensor, DTensor):
        return 1
    count = 1
    for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
        count *= 1 if placement.is_replicate() else size  # is_shard() does not know the strided shards of two axes
    return count
