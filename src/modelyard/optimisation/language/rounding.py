"""Where each weight of a matrix goes on the grid of a GGUF format, and the bytes of that. Tensors in, tensors out: it knows no
model.

Each 32 weights of a row share a scale (and an offset), kept in sixteen bits. `nearest` does as llama.cpp does. `compensated`
rounds one column after another and has those that are left make up for the error, weighted by what the layer sees (GPTQ:
E. Frantar et al., 2022, arXiv 2210.17323), on scales that are searched for rather than spanned by the largest weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from modelyard.errors import Invalid
from modelyard.tensors import Array

BLOCK = 32  # weights that share a scale
_DAMPING = 0.01  # of the mean of the diagonal, so that a matrix of few texts can be inverted
_SHARES = torch.linspace(0.6, 1.1, 26)  # of the span of a block's weights, that its scale is tried for
_CHUNK = 1 << 14  # rows at a time


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes from `low` to `high`, times a scale; with `offset` plus one. `bits` a weight, scales included."""

    low: int
    high: int
    offset: bool
    bits: float


GRIDS = {
    "q4_0": Grid(-8, 7, False, 4.5),
    "q4_1": Grid(0, 15, True, 5.0),
    "q5_0": Grid(-16, 15, False, 5.5),
    "q8_0": Grid(-127, 127, False, 8.5),
}


@dataclass(frozen=True, slots=True)
class Rounded:
    """A matrix on the grid `kind`: `codes` INT8 [rows, columns], `scale` and `offset` FP16 [rows, columns / 32]."""

    kind: str
    codes: Tensor
    scale: Tensor
    offset: Tensor

    def values(self) -> Tensor:
        """What the codes mean, FP32 [rows, columns]."""
        rows, columns = self.codes.shape
        blocks = self.codes.view(rows, -1, BLOCK).float()
        return (blocks * self.scale.float()[..., None] + self.offset.float()[..., None]).view(rows, columns)

    def packed(self) -> Array:
        """The bytes as GGUF has them, UINT8 [rows, bytes]: of each block its scale, its offset, its codes."""
        grid, (rows, columns) = GRIDS[self.kind], self.codes.shape
        scales = [self.scale, self.offset] if grid.offset else [self.scale]
        parts: list[Array] = [each.numpy().view(np.uint8).reshape(rows, columns // BLOCK, 2) for each in scales]
        codes = self.codes.numpy().reshape(rows, columns // BLOCK, BLOCK)
        if grid.low == -grid.high:
            parts.append(codes.view(np.uint8))
        else:
            low = (codes - grid.low).astype(np.uint8)
            if grid.high - grid.low > 15:  # the fifth bits of a block together
                parts.append(np.packbits(low >> 4, axis=-1, bitorder="little"))
            low &= 15  # the first half of a block in the low four bits, the second in the high
            parts.append(low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4))
        return np.ascontiguousarray(np.concatenate(parts, axis=-1).reshape(rows, -1))


def nearest(weight: Tensor, kind: str, share: float = 1.0) -> Rounded:
    """Each weight where it is nearest, on the scales that the format's own quantiser takes, times `share`. Raises `Invalid`
    where blocks do not fill a row."""
    check(weight, kind)
    return _joined(kind, (_nearest(part, kind, share) for part in torch.split(weight.float(), _CHUNK)))


def compensated(weight: Tensor, seen: Tensor, kind: str, gone: Tensor | None = None) -> Rounded:
    """`seen`: the sum of x xᵀ over all x that the layer was given, [columns, columns]. `gone`, BOOL [rows, columns]: weights
    that become nought, whose code is 0; those that are left make up for them too. Raises as `nearest`, and where `kind` has an
    offset and so no such code."""
    check(weight, kind)
    if gone is None:
        gone = torch.zeros_like(weight, dtype=torch.bool)
    elif GRIDS[kind].offset:
        raise Invalid(f"{kind} has no code for nought, so that nothing would stay pruned.")
    factor, idle = inverse_factor(seen)
    parts = zip(torch.split(weight.float(), _CHUNK), torch.split(gone, _CHUNK), strict=True)
    return _joined(kind, (_compensated(part, out, factor, idle, kind) for part, out in parts))


def check(weight: Tensor, kind: str) -> None:
    """Raises `Invalid` where `nearest` and `compensated` would."""
    if kind not in GRIDS:
        raise Invalid(f"'{kind}' is no grid; there are {', '.join(GRIDS)}.")
    if weight.ndim != 2 or weight.shape[1] % BLOCK:
        raise Invalid(f"A matrix {list(weight.shape)} cannot be {kind}: its rows must be multiples of {BLOCK} weights long.")


def _joined(kind: str, parts: Iterator[tuple[Tensor, Tensor, Tensor]]) -> Rounded:
    codes, scale, offset = (torch.cat(each) for each in zip(*parts, strict=True))
    return Rounded(kind, codes, scale, offset)


def _nearest(weight: Tensor, kind: str, share: float) -> tuple[Tensor, Tensor, Tensor]:
    blocks = weight.view(len(weight), -1, BLOCK)
    scale, offset = _spanned(blocks, kind, share)
    return _codes(blocks, scale, offset, kind).view(weight.shape).to(torch.int8), scale.half()[..., 0], offset.half()[..., 0]


def _spanned(blocks: Tensor, kind: str, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and offset, [..., 1], by which the grid reaches a `share` of what the weights span; of one without an offset the
    longer side is that of the largest weight."""
    grid = GRIDS[kind]
    if grid.offset:
        low, high = (each * share for each in torch.aminmax(blocks, dim=-1, keepdim=True))
        return _half((high - low) / (grid.high - grid.low)), _half(low)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = _half(largest * share / grid.low)
    return (scale if -grid.low != grid.high else scale.abs()), torch.zeros_like(scale)


def _searched(blocks: Tensor, matters: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """The scale and offset of those tried whose error is least, each weight's by how much it `matters`."""
    best, scale, offset = torch.full_like(blocks[..., :1], torch.inf), *_spanned(blocks, kind)
    for share in _SHARES.tolist():
        for one, two in _candidates(blocks, kind, share):
            error = ((_codes(blocks, one, two, kind) * one + two - blocks) ** 2 * matters).sum(-1, keepdim=True)
            better = error < best
            best = torch.where(better, error, best)
            scale, offset = torch.where(better, one, scale), torch.where(better, two, offset)
    return scale, offset


def _candidates(blocks: Tensor, kind: str, share: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Scales of both signs; with an offset, spans that give up the low end, the high end, or both."""
    scale, offset = _spanned(blocks, kind, share)
    yield scale, offset
    grid = GRIDS[kind]
    if not grid.offset:
        yield _half(scale * grid.low / grid.high), offset
        return
    whole, low = _spanned(blocks, kind)
    high = low + whole * (grid.high - grid.low)
    for bottom, top in ((low * share, high), (low, high * share)):
        yield _half((top - bottom) / (grid.high - grid.low)), _half(bottom)


def _codes(blocks: Tensor, scale: Tensor, offset: Tensor, kind: str) -> Tensor:
    grid = GRIDS[kind]
    return torch.round((blocks - offset) / torch.where(scale == 0, 1.0, scale)).clamp_(grid.low, grid.high)


def _half(values: Tensor) -> Tensor:
    """As they will be stored."""
    return values.half().float()


def inverse_factor(seen: Tensor) -> tuple[Tensor, Tensor]:
    """The upper Cholesky factor of the inverse, FP32, and the columns that never see anything but nought, BOOL. Raises
    `Invalid` where there is none."""
    seen = seen.double().clone()
    diagonal = seen.diagonal()
    idle = diagonal == 0
    diagonal[idle] = 1.0
    diagonal += _DAMPING * diagonal.mean()
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(seen))
        return torch.linalg.cholesky(inverse, upper=True).float(), idle
    except RuntimeError as error:  # LinAlgError is one
        raise Invalid(
            "What a layer sees of the calibrate split cannot be inverted: give more texts, or do without: rounding=nearest, "
            "by=wanda."
        ) from error


def _compensated(weight: Tensor, gone: Tensor, factor: Tensor, idle: Tensor, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    left = weight.clone()
    left[:, idle] = 0.0
    codes = torch.empty_like(weight, dtype=torch.int8)
    scales, offsets = [], []
    for start in range(0, weight.shape[1], BLOCK):
        stop = start + BLOCK
        block, corner = left[:, start:stop].clone(), factor[start:stop, start:stop]
        scale, offset = _searched(block.masked_fill(gone[:, start:stop], 0.0), 1 / corner.diagonal() ** 2, kind)
        errors = torch.empty_like(block)
        for at in range(BLOCK):
            column = block[:, at : at + 1]
            code = _codes(column, scale, offset, kind).masked_fill_(gone[:, start + at : start + at + 1], 0.0)
            codes[:, start + at] = code[:, 0]
            errors[:, at : at + 1] = (column - code * scale - offset) / corner[at, at]
            block[:, at + 1 :] -= errors[:, at : at + 1] @ corner[at : at + 1, at + 1 :]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
        scales.append(scale.half())
        offsets.append(offset.half())
    return codes, torch.cat(scales, 1), torch.cat(offsets, 1)
