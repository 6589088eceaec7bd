"""Fifth: the ranks along `shard` hold each parameter in parts and put a block together while it computes (FSDP2); along `data`
they hold the same parts (HSDP). This is also how `data` goes together with `tensor` and `pipe`, and how they compute in bf16.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from modelyard.errors import Invalid
from modelyard.training.parallel.home import bring

_NORM = (torch.float32, torch.float32, torch.bfloat16)  # of parameters, of sums of gradients, of the answer
# Nobody writes into an answer here: the loss reads it.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def shard(unit: nn.Module, mesh: DeviceMesh, device: torch.device, *, bf16: bool, keep: bool, last: bool) -> None:
    """In place, after it has come to `device`: what of the unit is not held in parts yet is held so together. The `last` is
    all that the rank has. `mesh` is of `shard`, or of `data` and `shard`. Gradients become means over it. `keep`: a unit stays
    together from forward to backward (a pipe comes by more than once)."""
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, torch.float32 if last else None)
    policies = {norm: MixedPrecisionPolicy(*_NORM) for norm in _batch_norms(unit)} if bf16 else {}
    for module in [*policies, unit]:
        if not isinstance(module, FSDPModule):
            bring(module, device)
            default = policy if bf16 else MixedPrecisionPolicy()
            fully_shard(module, mesh=mesh, reshard_after_forward=not keep, mp_policy=policies.get(module, default))
    for module in unit.modules() if last else ():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(mesh.device_type == "cpu")  # gloo sums; it knows no mean


@contextmanager
def exactly(parts: Iterable[nn.Module]) -> Iterator[None]:
    """While this lasts, what `shard` had compute in bf16 computes in its parameters' own dtype."""
    units = [module for part in parts for module in part.modules() if isinstance(module, FSDPModule)]
    policies = [unit._get_fsdp_state()._mp_policy for unit in units]
    try:
        for unit in units:
            _compute_by(unit, MixedPrecisionPolicy())
        yield
    finally:
        for unit, policy in zip(units, policies, strict=True):
            _compute_by(unit, policy)


def _compute_by(unit: FSDPModule, policy: MixedPrecisionPolicy) -> None:
    """torch lets nobody change it: what a unit keeps of its first forward is of the dtype that it had."""
    unit.reshard()
    state = unit._get_fsdp_state()
    state._mp_policy = policy
    for group in state._fsdp_param_groups:
        group.mp_policy = policy
        for parameter in group.fsdp_params:
            parameter.all_gather_outputs = []
            vars(parameter).pop("_unsharded_param", None)
        group._init_mp_dtypes()


def check_parts(network: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Raises `Invalid` where a parameter of the whole network cannot be held in parts, or not together with all that it is."""
    unit = {id(parameter): at for at, block in enumerate(blocks) for parameter in block.parameters()}
    inside = {id(module): at for at, block in enumerate(blocks) for module in block.modules()}
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(path, recurse=False):
            if parameter.dim() == 0:
                raise Invalid(
                    f"The parameter '{name}' is a number without a dim, which the axis shard cannot hold in parts, nor data "
                    "beside another axis, nor bf16: give it the shape [1]."
                )
            if unit.get(id(parameter)) != inside.get(id(module)):
                raise Invalid(f"'{name}' is one parameter with another of a different block, which are held apart.")


def _batch_norms(network: nn.Module) -> Iterator[nn.Module]:
    """What keeps statistics in float32 and computes in nothing less."""
    return (module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
