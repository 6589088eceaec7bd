"""Strategies of parallelism, applied to a network from outside: its own code knows none.

Now there is one, the data axis: every rank holds the whole network and a part of each batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelyard.training.gang import Gang

_WRITES_ONLY = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def applied(network: nn.Module, gang: Gang) -> Iterator[nn.Module]:
    """`network` as the gang trains it, while this lasts; its own parameters, its forward."""
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


def weight(own: int, rows: int, gang: Gang) -> float:
    """What a rank's mean loss over `own` of a step's `rows` counts, so that the gradients, which are averaged over ranks,
    are those of the mean loss over all rows: equal to one process that has the whole batch."""
    return own * gang.world / rows
