"""Third: a block forgets what it computed on the way and computes it again on the way back: memory for time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute(blocks: Iterable[nn.Module]) -> None:
    """In place, by forward alone: names stay, and what shards a block (after this) sees one forward and one backward."""
    for block in blocks:
        contexts = partial(_contexts, block)
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)


Buffers = list[tuple[nn.Module, str, torch.Tensor | None]]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    before: Buffers = []
    return _remembered(block, before), unseen(block, before)


@contextmanager
def _remembered(block: nn.Module, before: Buffers) -> Iterator[None]:
    """Fill `before` with what the block's buffers were before this forward, as far as it changes them."""
    was = [
        (module, name, buffer, _copy(buffer), buffer is not None and buffer._version) for module, name, buffer in _own(block)
    ]
    yield
    for module, name, buffer, copy, version in was:
        if module._buffers[name] is not buffer or (buffer is not None and buffer._version != version):
            before.append((module, name, copy))


@contextmanager
def unseen(block: nn.Module, before: Buffers | None = None) -> Iterator[None]:
    """While this lasts, the block reads its buffers as they were and writes into copies: what is computed again must be what
    was computed, and must not count again, as batch norm would count it."""
    own = _own(block)
    for module, name, buffer in own:
        module._buffers[name] = _copy(buffer)
    for module, name, buffer in before or ():
        module._buffers[name] = _copy(buffer)
    try:
        yield
    finally:
        for module, name, buffer in own:
            module._buffers[name] = buffer


def _own(block: nn.Module) -> Buffers:
    return [(module, name, buffer) for module in block.modules() for name, buffer in module._buffers.items()]


def _copy(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else buffer.clone()
