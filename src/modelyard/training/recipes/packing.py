"""Documents of tokens as blocks of one length: pure, numpy alone.

`causal_lm` gives it a split's documents. A token is predicted from those before it in its own document and in its own block; a
block says by `POSITIONS` where each document in it begins, so that the network keeps them apart. What no token is to be learned
of has the target `IGNORED`.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from modelyard.tensors import Array

IGNORED = -100  # as torch.nn.functional.cross_entropy has it
TOKENS, POSITIONS = 0, 1  # of a block's dim 0


@dataclass(frozen=True, slots=True)
class Document:
    """Tokens in order, and which of them are to be learned (None: all)."""

    tokens: Array
    learned: Array | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a document: tokens, and for each the one to be predicted after it or `IGNORED`; equally long."""

    tokens: Array
    targets: Array


@dataclass(frozen=True, slots=True)
class Blocks:
    """`inputs` INT32 [n, 2, length]: tokens, and each token's position in its document. `targets` INT32 [n, length]. `cut`:
    documents of which something was left out or that were parted. `groups` INT64 [n]: equal where blocks hold parts of one
    document."""

    inputs: Array
    targets: Array
    cut: int
    groups: Array

    @property
    def learned(self) -> int:
        """Tokens that are learned."""
        return int((self.targets != IGNORED).sum())

    @property
    def there(self) -> Array:
        """What is no padding, BOOL [n, length]: all up to a block's last token that is learned of."""
        learned = self.targets[:, ::-1] != IGNORED
        there: Array = np.logical_or.accumulate(learned, axis=1)[:, ::-1]
        return there


def pack(documents: Iterable[Document], length: int, padding: int, *, together: bool = True, part: bool = True) -> Blocks:
    """Every token that is learned, once. A document longer than `length` is parted (`part`) or loses its end; its pieces and
    the short documents fill blocks, the longest first, each where it fits best. Not `together`: a piece a block."""
    pieces: list[Piece] = []
    owners: list[int] = []
    cut = 0
    for number, document in enumerate(documents):
        cut += len(document.tokens) > length + 1
        pieces += [piece for piece in parts(document, length, part=part) if (piece.targets != IGNORED).any()]
        owners += [number] * (len(pieces) - len(owners))
    groups = fit([len(piece.tokens) for piece in pieces], length) if together else [[at] for at in range(len(pieces))]
    inputs = np.zeros((len(groups), 2, length), np.int32)
    inputs[:, TOKENS] = padding
    targets = np.full((len(groups), length), IGNORED, np.int32)
    for row, group in enumerate(groups):
        start = 0
        for at in group:
            piece = pieces[at]
            end = start + len(piece.tokens)
            inputs[row, TOKENS, start:end] = piece.tokens
            inputs[row, POSITIONS, start:end] = np.arange(end - start)
            targets[row, start:end] = piece.targets
            start = end
        inputs[row, POSITIONS, start:] = np.arange(length - start)  # padding is a document of its own
    # Pieces that share a block are the last of their documents; those before fill one each, and belong to where the last lies.
    homes = {owners[at]: row for at, row in sorted((at, row) for row, group in enumerate(groups) for at in group)}
    return Blocks(inputs, targets, cut, np.array([homes[owners[group[0]]] for group in groups], np.int64))


def parts(document: Document, length: int, *, part: bool) -> list[Piece]:
    """A document in pieces of at most `length`. The last token predicts nothing; where a piece ends, its last token predicts
    the first of the next one, so that every token but the very first is predicted once."""
    tokens = np.asarray(document.tokens, np.int32)
    inputs, targets = tokens[:-1], tokens[1:].copy()
    if document.learned is not None:
        targets[~np.asarray(document.learned, bool)[1:]] = IGNORED
    starts = range(0, len(targets) if part else min(1, len(targets)), length)
    return [Piece(inputs[at : at + length], targets[at : at + length]) for at in starts]


def fit(sizes: Sequence[int], length: int) -> list[list[int]]:
    """Positions of `sizes` in groups of at most `length` together: best fit, the largest first; the same for the same sizes.
    Groups are in the order of their first members."""
    groups: list[list[int]] = []
    open_groups: list[tuple[int, int]] = []  # (room, group), sorted
    for at in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        found = bisect_left(open_groups, (sizes[at], -1))
        if found < len(open_groups):
            room, group = open_groups.pop(found)
        else:
            room, group = length, len(groups)
            groups.append([])
        groups[group].append(at)
        if room > sizes[at]:
            insort(open_groups, (room - sizes[at], group))
    return sorted(sorted(group) for group in groups)
