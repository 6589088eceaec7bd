"""Strategies of parallelism, applied to a network from outside: its own code knows none.

Now there is one, the data axis: every rank holds the whole network and a part of each batch.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from modelyard.training.gang import Gang


def apply(network: nn.Module, gang: Gang) -> nn.Module:
    """`network` as the gang trains it; its own parameters, its forward."""
    if gang.world == 1:
        return network
    return DistributedDataParallel(network, device_ids=[gang.device] if gang.device.type == "cuda" else None)


def weight(own: int, rows: int, gang: Gang) -> float:
    """What a rank's mean loss over `own` of a step's `rows` counts, so that the gradients, which are averaged over ranks,
    are those of the mean loss over all rows: equal to one process that has the whole batch."""
    return own * gang.world / rows
