"""Sixth: where every rank holds the whole network, gradients are averaged over the ranks while they are computed (DDP)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from modelyard.errors import Invalid
from modelyard.training.gang import Gang

_WRITES_ONLY = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@contextmanager
def replicated(network: nn.Module, gang: Gang, *, partly: bool = False, equal: bool = False) -> Iterator[nn.Module]:
    """`network` as the gang trains it, while this lasts; its own parameters, its forward. A gang of one trains it as it is.
    `partly`: forward does not use every parameter, so that those it did not are looked for at every step. `equal`: the
    parameters are the same on all ranks already."""
    if gang.world == 1:
        yield network
        return
    model = DistributedDataParallel(
        network,
        device_ids=[gang.device] if gang.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        init_sync=not equal,
        find_unused_parameters=partly,
    )
    if equal:
        gang.share_buffers(network)
    model.broadcast_buffers = reads_buffers(network)  # at every forward; at its start it has made all equal to rank 0's
    try:
        yield model
    finally:
        # Whoever lets go of the process group last joins gloo's thread. The reducer would do so holding the GIL, which that
        # thread may be waiting for: a deadlock. So the reducer goes first, also where a traceback still holds the model.
        del model.logger, model.reducer


def uses_all(network: nn.Module, example: torch.Tensor) -> bool:
    """Whether the answer for `example` rests on every parameter that learns."""
    was = network.training
    network.eval()
    with torch.enable_grad():
        answer = network(example)
    network.train(was)
    found, nodes = set(), [answer.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        found.add(id(getattr(node, "variable", None)))
        nodes.extend(after := {n for n, _ in getattr(node, "next_functions", ()) if n is not None} - seen)
        seen |= after
    return all(id(parameter) in found for parameter in network.parameters() if parameter.requires_grad)


def exchanged(model: DistributedDataParallel) -> None:
    """Raises `Invalid` where a backward left out what DDP waits for: gradients are then of this rank alone."""
    try:
        model._check_reducer_finalized()
    except RuntimeError as error:
        raise Invalid(
            "forward used other parameters than for the rows that it was tried on, so that gradients were not exchanged: let "
            "it use the same at every step, or train on the axis shard instead of data."
        ) from error


def reads_buffers(network: nn.Module) -> bool:
    """Whether forward may read a buffer while training, and so must find rank 0's in it. Batch norm only writes its own."""
    return any(_kind(part) not in _WRITES_ONLY and any(True for _ in part.buffers(recurse=False)) for part in network.modules())


def _kind(part: nn.Module) -> type:
    """FSDP makes a class for a module it holds, of its own and the module's."""
    return type(part).__bases__[-1] if isinstance(part, FSDPModule) else type(part)
