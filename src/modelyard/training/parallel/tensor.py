"""Second: the ranks along the axis `tensor` compute each named layer in parts, as the model's plan says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from modelyard.training.parallel.clip import local
from modelyard.training.parallel.cut import held
from modelyard.training.split import BY_INPUTS


def split_layers(network: nn.Module, mesh: DeviceMesh, styles: Mapping[str, str]) -> None:
    """Give each layer that `styles` names its style, in place. A layer that another stage holds is passed over."""
    here = held(network)
    plan = {name: _style(here[name], style) for name, style in styles.items() if name in here and style != "shared"}
    if plan:
        parallelize_module(network, mesh, plan)


def settle(parameters: Iterable[nn.Parameter]) -> None:
    """Bring each gradient to the parts its parameter is in: an embedding's comes as parts of a sum."""
    for parameter in parameters:
        grad = parameter.grad
        if isinstance(parameter, DTensor) and isinstance(grad, DTensor) and grad.placements != parameter.placements:
            parameter.grad = grad.redistribute(placements=parameter.placements)


def add_up(parameters: Iterable[nn.Parameter], group: ProcessGroup | None) -> None:
    """Add up over `group` the gradients of what is whole in each of its ranks and is applied there to a part alone."""
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(local(parameter.grad), group=group)


def _style(layer: nn.Module, name: str) -> ParallelStyle:
    if name in BY_INPUTS:
        whole = name == "scattered" or isinstance(layer, nn.Embedding)
        return RowwiseParallel(input_layouts=Replicate() if whole else Shard(-1))
    return ColwiseParallel(output_layouts=Replicate()) if name == "gathered" else ColwiseParallel()
