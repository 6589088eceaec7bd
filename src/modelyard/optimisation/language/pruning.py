"""Which weights of a matrix are set to nought, and what becomes of the others. Tensors in, tensors out: it knows no model.

Weights are compared within their row, so that every row loses the same share: by their magnitude; by that times the length of
what their column sees (Wanda: M. Sun et al., 2023, arXiv 2306.11695); or by what it costs once those that are left make up for
them, column after column (SparseGPT: E. Frantar, D. Alistarh, 2023, arXiv 2301.00774).
"""

from __future__ import annotations

import torch
from torch import Tensor

from modelyard.errors import Invalid
from modelyard.optimisation.language.rounding import inverse_factor

_SPAN = 64  # columns that are chosen among at once; few, since the last of them find little left to make up for them


def pruned(weight: Tensor, seen: Tensor, share: float, *, by: str = "wanda", pattern: str = "any") -> tuple[Tensor, Tensor]:
    """The matrix with a `share` of each row set to nought, rounded down, FP32 [rows, columns], and which those are, BOOL. With
    the pattern '2:4' it is two of every four. `seen`: the sum of x xᵀ over all x that the layer was given, [columns, columns].
    Raises `Invalid` where the share is less than a weight of a row or leaves none, or fours do not fill a row."""
    count, fours = going(weight, share, pattern), pattern == "2:4"
    weight = weight.float()
    if by == "sparsegpt":
        return _made_up_for(weight, seen, count, fours)
    scores = weight.abs() * seen.diagonal().sqrt() if by == "wanda" else weight.abs()
    gone = _least(scores.view(-1, 4), 2).view(weight.shape) if fours else _least(scores, count)
    return weight.masked_fill(gone, 0.0), gone


def going(weight: Tensor, share: float, pattern: str) -> int:
    """How many weights of each row go. Raises `Invalid` where `pruned` would."""
    columns, fours = weight.shape[1], pattern == "2:4"
    if fours and columns % 4:
        raise Invalid(f"A matrix {list(weight.shape)} has no pattern 2:4: its rows must be multiples of 4 weights long.")
    count = columns // 2 if fours else int(share * columns + 1e-6)
    if not 0 < count < columns:
        raise Invalid(
            f"A share of {share:g} of a matrix {list(weight.shape)} is {count} weights of each row; at least 1 must go, "
            f"and 1 stay: give a share from {1 / columns:.4g} to {1 - 1 / columns:.4g}."
        )
    return count


def _least(scores: Tensor, count: int) -> Tensor:
    """Which are the `count` least of each row, BOOL."""
    places = scores.topk(count, largest=False, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, places, True)


def _made_up_for(weight: Tensor, seen: Tensor, count: int, fours: bool) -> tuple[Tensor, Tensor]:
    """Each span of columns, or each four, loses its part of the `count` once those before it are made up for."""
    factor, idle = inverse_factor(seen)
    left, gone = weight.masked_fill(idle, 0.0), torch.zeros_like(weight, dtype=torch.bool)
    rows, columns = weight.shape
    for start in range(0, columns, _SPAN):
        stop = min(start + _SPAN, columns)
        block, out, corner = left[:, start:stop], gone[:, start:stop], factor[start:stop, start:stop]
        together, fewer = (4, 2) if fours else (stop - start, count * stop // columns - count * start // columns)
        errors = torch.empty(rows, stop - start)
        for at in range(stop - start):
            if at % together == 0:
                some = slice(at, at + together)
                out[:, some] = _least((block[:, some] / corner.diagonal()[some]) ** 2, fewer)
            errors[:, at] = block[:, at] * out[:, at] / corner[at, at]
            block[:, at + 1 :] -= errors[:, at : at + 1] @ corner[at : at + 1, at + 1 :]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return left.masked_fill_(gone, 0.0), gone
