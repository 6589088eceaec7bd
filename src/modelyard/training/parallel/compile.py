"""Fourth, where asked for: each block is compiled by itself, so that equal blocks share the work of the compiler."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """In place; it happens at the first forward."""
    for block in blocks:
        block.compile()
