"""Where a network's tensors lie: the whole in main memory until it is split, then on each rank's device what that rank keeps.

`loop` and `prepare` ask `home` where the whole is to be, and try it out there; `spread` brings the parts. A network that every
rank holds whole lies on the device from the start. Of one that is split no device has more at a time than its own part, the
layer or block that is being split and what a step computes with.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.tensor import DTensor

from modelyard.training.mesh import Mesh

_MAIN = torch.device("cpu")


def home(mesh: Mesh, device: torch.device) -> torch.device:
    """Where the whole network lies, and is tried out, until it is spread over `mesh`."""
    return device if mesh.whole else _MAIN


def equalise(network: nn.Module, device: torch.device) -> None:
    """Give every rank rank 0's tensors, one by one over the device: what a class draws at random without torch differs."""
    for tensor in network.state_dict().values():
        there = tensor.to(device)
        distributed.broadcast(there, src=0)
        if there is not tensor:
            tensor.copy_(there)


def bring(part: nn.Module, device: torch.device) -> None:
    """Move to its device what a rank keeps, but what is there already, as any DTensor is. Where both are the same, nothing."""
    for module in part.modules():
        own = (*module._parameters.values(), *module._buffers.values())
        if any(one is not None and not isinstance(one, DTensor) and one.device != device for one in own):
            module._apply(lambda tensor: tensor.to(device), recurse=False)
