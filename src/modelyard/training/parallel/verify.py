"""Does the network that was spread compute what it computed whole? Measured on a few rows before the first step, parameter by
parameter: a layer split the wrong way round, an adapter that a split does not see or a sequence that leaves something out is an
error here and never a wrong number.

`whole` is called before `spread`, `verify` after; both by every rank. Rank 0 alone computes the whole network's gradients, in
main memory, where that lies, and hands them round one by one: no device holds more of them than the largest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from modelyard.data import shards
from modelyard.errors import Invalid
from modelyard.training.estimate import no_memory
from modelyard.training.gang import Gang
from modelyard.training.parallel.clip import local
from modelyard.training.parallel.shard import exactly
from modelyard.training.parallel.spread import Spread
from modelyard.training.parallel.steps import Measure

# Of a gradient's length: what the order of sums may change, with a margin (some norms compute in float32 whatever they are
# given). A wrong split changes tenths and more.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_STIRRED = 0.02
_SMALL = 0.01  # of the whole gradient's length: shorter ones (some are 0 but for rounding) are compared with that


@dataclass(frozen=True, slots=True)
class Whole:
    """What the whole network said. `loss` is the mean over rows; `gradients` are rank 0's, let go of as they are compared;
    `shapes` of all that learns; `stirred`: parameters that are 0 and were given numbers for as long as this is compared."""

    loss: float
    gradients: dict[str, torch.Tensor]
    shapes: Mapping[str, torch.Size]
    dtype: torch.dtype
    stirred: tuple[str, ...]


def whole(network: nn.Module, measure: Measure, gang: Gang, inputs: torch.Tensor, target: torch.Tensor) -> Whole:
    """The network as it was built, answering and differentiating in evaluation mode. What is 0 is given numbers until `verify`
    has compared: through the second matrix of a fresh LoRA, which is 0, no gradient would reach the first."""
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    shapes, dtype = {name: p.shape for name, p in learning.items()}, next(iter(learning.values())).dtype
    stirred = stir(learning)
    if gang.rank:
        return Whole(0.0, {}, shapes, dtype, stirred)
    was = network.training
    network.eval()
    try:
        loss, _ = measure(network(inputs), target)
        found = torch.autograd.grad(loss, list(learning.values()), allow_unused=True, materialize_grads=True)
    except Exception:
        for name in stirred:
            learning[name].data.zero_()
        raise
    finally:
        network.train(was)
    return Whole(float(loss.detach()), dict(zip(learning, found, strict=True)), shapes, dtype, stirred)


def stir(parameters: Mapping[str, nn.Parameter]) -> tuple[str, ...]:
    """Give those that are all 0 small numbers, the same on every rank; returns their names."""
    draw, found = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for name, parameter in parameters.items():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype) * _STIRRED)
                found.append(name)
    return tuple(found)


def verify(spread: Spread, before: Whole, inputs: torch.Tensor, target: torch.Tensor) -> None:
    """Raises `Invalid` on every rank, naming the first parameter whose gradient is another one. The same rows as `whole` had,
    all of them; each rank takes its part. What trains in bf16 is compared in float32: in bf16 no short gradient could be told
    from rounding."""
    own = shards.share(len(target), spread.mesh.replicas, spread.place.replica)
    spread.train(False)
    try:
        with exactly(spread.parts):
            sums = spread.step(inputs[own.start : own.stop], target[own.start : own.stop], len(target))
    except (RuntimeError, ValueError, IndexError) as error:
        if no_memory(error):  # told as that, with the estimate
            raise
        why = str(error).partition("\n")[0]
        raise Invalid(f"On the mesh {spread.mesh} the model cannot be computed as PARALLEL splits it: {why}") from error
    parameters, device = spread.parameters(), spread.gang.device
    lengths = torch.zeros(
        len(before.shapes) + 1, 2, dtype=torch.float64, device=device
    )  # squared: of differences, of gradients
    lengths[-1, 0] = sums.loss / len(target)
    for at, (name, shape) in enumerate(before.shapes.items()):
        known = before.gradients.pop(name, None)
        expected = torch.empty(shape, dtype=before.dtype, device=device) if known is None else known.to(device).contiguous()
        distributed.broadcast(expected, src=0)
        if name in parameters:
            lengths[at] = _compare(parameters[name], expected)
        lengths[-1, 1] += before.loss if at == 0 and spread.gang.rank == 0 else 0.0
    distributed.all_reduce(lengths)
    for name, parameter in parameters.items():
        parameter.grad = None
        if name in before.stirred:
            local(parameter.data).zero_()
    _judge(list(before.shapes), lengths.tolist(), _TOLERANCE[before.dtype], spread)


def _judge(names: list[str], lengths: list[list[float]], tolerance: float, spread: Spread) -> None:
    *squares, (loss, expected) = lengths
    share = sum(square for _, square in squares) * _SMALL**2
    for name, (difference, square) in zip(names, squares, strict=True):
        off = (difference / max(square, share)) ** 0.5 if max(square, share) > 0 else (inf if difference else 0.0)
        if not off <= tolerance:
            raise Invalid(
                f"On the mesh {spread.mesh} the model does not compute what it computes whole: the gradient of '{name}' is off "
                f"by {off:.2g} of its length, {tolerance:g} is allowed. See what PARALLEL says of this layer and of those "
                "after it, and whether something was put around them since; forward must not mix rows."
            )
    if not abs(loss - expected) <= tolerance * max(abs(expected), 1e-3):
        raise Invalid(
            f"On the mesh {spread.mesh} the model's loss over the same rows is {loss:.9g}; whole, it is {expected:.9g}."
        )


def _compare(parameter: nn.Parameter, expected: torch.Tensor) -> torch.Tensor:
    """The squared lengths of the difference and of what was expected, of what this rank holds."""
    if isinstance(parameter, DTensor):
        shape, start = compute_local_shape_and_global_offset(expected.shape, parameter.device_mesh, parameter.placements)
        expected = expected[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))]
    found = torch.zeros_like(expected) if parameter.grad is None else local(parameter.grad)
    return torch.stack([(found - expected).double().square().sum(), expected.double().square().sum()])
