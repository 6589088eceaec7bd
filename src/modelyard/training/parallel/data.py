"""Sixth: where every rank holds the whole network, gradients are averaged over the ranks while they are computed (DDP)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelyard.training.gang import Gang

_WRITES_ONLY = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def replicated(network: nn.Module, gang: Gang) -> Iterator[nn.Module]:
    """`network` as the gang trains it, while this lasts; its own parameters, its forward. A gang of one trains it as it is."""
    if gang.world == 1:
        yield network
        return
    model = DistributedDataParallel(
        network,
        device_ids=[gang.device] if gang.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    model.broadcast_buffers = reads_buffers(network)  # at every forward; at its start it has made all equal to rank 0's
    try:
        yield model
    finally:
        # Whoever lets go of the process group last joins gloo's thread. The reducer would do so holding the GIL, which that
        # thread may be waiting for: a deadlock. So the reducer goes first, also where a traceback still holds the model.
        del model.logger, model.reducer


def reads_buffers(network: nn.Module) -> bool:
    """Whether forward may read a buffer while training, and so must find rank 0's in it. Batch norm only writes its own."""
    return any(type(part) not in _WRITES_ONLY and any(True for _ in part.buffers(recurse=False)) for part in network.modules())
