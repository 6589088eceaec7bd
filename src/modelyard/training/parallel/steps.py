"""What it is to compute a step: forward and backward over this rank's rows in pieces, and what is counted of the answers.

`Steps` is without a pipe, `pipe.Pipe` with one; `Spread` has one or the other. Gradients are those of the mean loss over all
rows of the step once they are averaged over the replicas, however many rows each has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from modelyard.training.parallel.data import exchanged

# Answers and targets of some rows → the mean loss over them, and how many are answered right.
Measure = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Sums(NamedTuple):
    """Over rows: losses, right answers, and how many rows they are. Zeros on a rank that another one counts for."""

    loss: float
    right: float
    rows: int


NOTHING = Sums(0.0, 0.0, 0)


class Runner(Protocol):
    """Collective over the ranks that compute together."""

    def step(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        """Forward and backward over this rank's part of a step of `rows`."""
        ...

    def score(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        """Forward alone; the first `rows` count."""
        ...


def pieces(rows: int, count: int) -> Iterator[slice]:
    """`rows` in `count` slices that differ by at most one row."""
    return (slice(rows * at // count, rows * (at + 1) // count) for at in range(count))


def weight(own: int, rows: int, replicas: int) -> float:
    """What the mean loss over `own` of a step's `rows` counts, so that the gradients, which are averaged over replicas, are
    those of the mean loss over all rows: equal to one process that has the whole batch."""
    return own * replicas / rows


class Steps:
    """The whole network in one go, as often as there are pieces; gradients are exchanged with the last."""

    def __init__(self, model: nn.Module, measure: Measure, *, replicas: int, count: int, autocast: str | None) -> None:
        self.model = model
        self._measure = measure
        self._replicas = replicas
        self.count = count
        self._autocast = autocast  # the type of device, where computing is in bf16

    def step(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        loss, right = inputs.new_zeros((), dtype=torch.float64), inputs.new_zeros((), dtype=torch.float64)
        for at, piece in enumerate(pieces(len(target), self.count)):
            with self._exchange(at == self.count - 1):
                mean, correct = self._answer(inputs[piece], target[piece])
                own = len(target[piece])
                (mean * weight(own, rows, self._replicas)).backward()
                if at == self.count - 1 and isinstance(self.model, DistributedDataParallel):
                    exchanged(self.model)
            loss += mean.detach().double() * own
            right += correct
        found = torch.stack([loss, right]).tolist()  # the one place of a step that waits for the device
        return Sums(found[0], found[1], len(target))

    def score(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        with torch.no_grad(), self._precision():
            answer = self.model(inputs)
        if not rows:
            return NOTHING
        mean, right = self._measure(_single(answer[:rows]), target[:rows])
        return Sums(float(mean) * rows, float(right), rows)

    def _answer(self, inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with self._precision():
            answer = self.model(inputs)
        return self._measure(_single(answer), target)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._autocast, torch.bfloat16) if self._autocast else nullcontext()

    def _exchange(self, last: bool) -> AbstractContextManager[object]:
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()


def _single(answer: torch.Tensor) -> torch.Tensor:
    """A loss is never computed in half precision."""
    return answer.float() if answer.dtype in (torch.bfloat16, torch.float16) else answer
