"""Last: the ranks along `pipe` hold stages of the sequence, and the pieces of a step pass through them one behind another.

Pieces must be of equal size, and a step's rows need not divide: they are dealt out evenly, in each piece its last row is
repeated to fill it, and what is repeated counts nothing in the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B

from modelyard.training.parallel.steps import NOTHING, Measure, Sums, pieces, weight

VIRTUAL = {"1f1b": 1, "gpipe": 1, "interleaved": 2}  # stages that a rank holds, by schedule


class Pipe:
    """This rank's stages and their turn. `borders`: what enters each stage of the whole pipe and what leaves the last, of any
    number of rows; `most`: rows that a replica has in one step. `passes`: each stage is given the rows too."""

    def __init__(
        self,
        stages: dict[int, nn.Module],
        borders: Sequence[torch.Tensor],
        group: ProcessGroup,
        measure: Measure,
        *,
        schedule: str,
        replicas: int,
        pieces: int,
        most: int,
        passes: bool = False,
    ) -> None:
        self._count = len(borders) - 1
        self._first, self._last = 0 in stages, self._count - 1 in stages
        self._measure, self._passes = measure, passes
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor, int]] = {}  # by a piece's first row
        self._replicas = replicas
        self._rows, self._given, self._total, self._target = 0, 0, 1, torch.empty(0)
        self._pieces, self._each = pieces, -(-most // pieces)
        self._train, self._score = (
            self._schedule(schedule, self._stages(stages, borders, group, learns=learns)) for learns in (True, False)
        )

    @property
    def capacity(self) -> int:
        """Rows that pass through at once."""
        return self._pieces * self._each

    def step(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        return self._run(self._train.step, inputs, target, len(target), rows)

    def score(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        with torch.no_grad():
            return self._run(self._score.eval, inputs, target, rows, max(rows, 1))

    def _run(self, turn: Any, inputs: torch.Tensor, target: torch.Tensor, rows: int, total: int) -> Sums:
        self._rows, self._total, self._target, self._found = rows, total, target, {}
        self._given = len(inputs)
        filled = inputs[self._filled(len(inputs))] if self._first or self._passes else inputs
        given = [filled] if self._first else []
        named = {"rows": filled} if self._passes else {}
        if self._last:
            named["target"] = torch.arange(self.capacity, device=inputs.device)
        turn(*given, **named, return_outputs=False)
        if not self._found:
            return NOTHING
        losses, right, count = zip(*self._found.values(), strict=True)
        return Sums(float(torch.stack(losses).sum()), float(torch.stack(right).sum()), sum(count))

    def _filled(self, rows: int) -> torch.Tensor:
        """Which of `rows` pass through, piece after piece."""
        own = [range(rows)[piece] for piece in pieces(rows, self._pieces)]
        return torch.cat([(part.start + torch.arange(self._each)).clamp(max=max(part.start, part.stop - 1)) for part in own])

    def _loss(self, answer: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """What a piece adds to the loss: its real rows. `positions`: of the piece's rows among all that pass."""
        first = int(positions[0])
        piece = range(self._rows)[list(pieces(self._given, self._pieces))[first // self._each]]
        rows = len(piece)
        if not rows:
            return answer.sum() * 0.0
        mean, right = self._measure(answer[:rows], self._target[piece.start : piece.stop])
        self._found[first] = (mean.detach().double() * rows, right.double(), rows)
        return mean * weight(rows, self._total, self._replicas)

    def _stages(
        self, stages: dict[int, nn.Module], borders: Sequence[torch.Tensor], group: ProcessGroup, *, learns: bool
    ) -> list[Any]:
        """Their shapes are known, so that nothing needs to be tried out on made-up rows."""
        shape = [torch.empty(self._each, *b.shape[1:], dtype=b.dtype, device=b.device) for b in borders]
        for border in shape[1:] if learns else []:
            border.requires_grad_()
        return [
            PipelineStage(
                part, at, self._count, borders[0].device, input_args=shape[at], output_args=shape[at + 1], group=group
            )
            for at, part in stages.items()
        ]

    def _schedule(self, name: str, stages: list[Any]) -> Any:
        if name == "interleaved":
            return ScheduleInterleaved1F1B(stages, self._pieces, loss_fn=self._loss, scale_grads=False)
        kind = Schedule1F1B if name == "1f1b" else ScheduleGPipe
        return kind(stages[0], self._pieces, loss_fn=self._loss, scale_grads=False)
