"""A network as a gang trains it: `spread` applies the strategies in their order, `Spread` is what the loop then works with."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from modelyard.errors import Invalid
from modelyard.training.gang import Gang
from modelyard.training.mesh import AXES, Mesh, Place
from modelyard.training.parallel import clip
from modelyard.training.parallel.compile import compile_blocks
from modelyard.training.parallel.cut import borders, cut, held, release
from modelyard.training.parallel.data import reads_buffers, replicated, uses_all
from modelyard.training.parallel.home import bring, equalise
from modelyard.training.parallel.pipe import VIRTUAL, Pipe
from modelyard.training.parallel.recompute import recompute
from modelyard.training.parallel.shard import check_parts, shard
from modelyard.training.parallel.steps import Measure, Runner, Steps, Sums
from modelyard.training.parallel.tensor import add_up, settle, split_layers
from modelyard.training.split import Layout, Split, layout, owner

# Put together over two axes, a parameter is gathered in two goes. That is meant, and happens when a model is published.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)

_PIECES = 2  # per stage of a pipe, where nothing is said: more keep it fuller, each takes memory
_SCORED = 256  # rows answered at once where nothing is learned


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`pieces`: a rank's part of a step is computed in so many, one by one (None: 1; where there is a pipe, 2 a stage)."""

    pieces: int | None = None
    precision: str = "float32"
    recompute: bool = False
    compile: bool = False
    schedule: str = "1f1b"

    def count(self, mesh: Mesh) -> int:
        return self.pieces or (_PIECES * mesh.pipe if mesh.pipe > 1 else 1)


@dataclass(slots=True)
class Spread:
    """Every method is collective over the gang. `parts` are what this rank holds: the network, or its stages of a pipe.
    `runner` is that of steps; `owners`: the position along `pipe` that holds each name of the whole state, in order; `shared`:
    parameters that are whole in every rank along `tensor` and learn from each rank's part."""

    gang: Gang
    mesh: Mesh
    place: Place
    parts: tuple[nn.Module, ...]
    runner: Runner
    owners: Mapping[str, int]
    stage: distributed.ProcessGroup | None
    shared: Sequence[nn.Parameter] = ()
    tensor: distributed.ProcessGroup | None = None
    partly: bool = False  # forward does not use every parameter
    reads: bool = field(init=False)  # what a forward learns of its rows decides what the next one answers

    def __post_init__(self) -> None:
        apart = not self.mesh.whole and self.mesh.replicas > 1  # otherwise DDP sees to it
        self.reads = apart and any(reads_buffers(part) for part in self.parts)

    @property
    def least(self) -> int:
        """Rows that a step needs: one for each piece that is computed."""
        return self.mesh.replicas * (self.runner.count if isinstance(self.runner, Steps) else 1)

    @property
    def counts(self) -> bool:
        """Whether rows are counted here: those that compute on the same rows count them once."""
        return self.place.tensor == 0 and self.place.pipe == self.mesh.pipe - 1

    @property
    def capacity(self) -> int:
        """Rows that can be scored at once."""
        return self.runner.capacity if isinstance(self.runner, Pipe) else _SCORED

    def parameters(self) -> dict[str, nn.Parameter]:
        """What this rank holds, by the original names."""
        return {name: parameter for part in self.parts for name, parameter in part.named_parameters()}

    def state(self) -> dict[str, torch.Tensor]:
        """Parameters and buffers that this rank holds, as they are held, by the original names."""
        return {name: tensor for part in self.parts for name, tensor in part.state_dict().items()}

    def train(self, mode: bool) -> None:
        for part in self.parts:
            part.train(mode)

    @contextmanager
    def epoch(self, *, equal: bool = False) -> Iterator[None]:
        """While this lasts, steps can be taken. Anew for each epoch: what torch learns of a network's order while it runs would
        change the order of sums on resume. `equal`: all ranks' parameters surely are, which saves sending rank 0's."""
        if not (self.mesh.whole and isinstance(self.runner, Steps)):
            yield
            return
        with replicated(self.parts[0], self.gang, partly=self.partly, equal=equal) as self.runner.model:
            yield
        self.runner.model = self.parts[0]

    def step(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        """Forward and backward over this replica's part of a step of `rows`. Returns what is counted here."""
        if self.reads and self.parts[0].training:
            self.share_buffers()
        sums = self.runner.step(inputs, target, rows)
        if self.mesh.tensor > 1:
            settle(self.parameters().values())
            add_up(self.shared, self.tensor)
        return self._counted(sums)

    def score(self, inputs: torch.Tensor, target: torch.Tensor, rows: int) -> Sums:
        """Forward alone over at most `capacity` rows and at least one, the first `rows` of which count. Every rank calls it
        equally often."""
        sums = self.runner.score(inputs, target, rows)
        for part in self.parts if self.mesh.pipe > 1 else ():  # no backward comes by that would take them apart again
            for module in part.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()
        return self._counted(sums)

    def clip(self, most: float) -> float:
        """Shorten the whole gradient to length `most`; returns its length before."""
        return clip.clip(self.parameters().values(), most, self.gang, self.mesh.ranks // self.mesh.pipe)

    def share_buffers(self) -> None:
        """Give every rank the buffers (batch statistics) of the first that holds them, which are the ones that are kept."""
        if self.mesh.ranks == 1:
            return
        first = self.place.pipe * (self.mesh.ranks // self.mesh.pipe)
        for part in self.parts:
            for buffer in part.buffers():
                distributed.broadcast(buffer, src=first, group=self.stage)

    def full_state(self) -> dict[str, torch.Tensor] | None:
        """The whole state in its original order and form, in rank 0's main memory; None elsewhere."""
        own, whole = self.state(), {}
        each = self.mesh.ranks // self.mesh.pipe
        for name, pipe in self.owners.items():
            tensor = _whole(own[name]) if name in own else None
            if pipe and self.gang.rank == pipe * each and tensor is not None:
                distributed.send_object_list([tensor.shape, tensor.dtype], dst=0)
                distributed.send(tensor, dst=0)
            if self.gang.rank == 0:
                whole[name] = (_received(pipe * each, self.gang.device) if tensor is None else tensor).cpu()
        return whole if self.gang.rank == 0 else None

    def _counted(self, sums: Sums) -> Sums:
        return sums if self.counts else Sums(0.0, 0.0, 0)


def spread(
    network: nn.Module,
    split: Split,
    mesh: Mesh,
    gang: Gang,
    options: Options,
    measure: Measure,
    *,
    example: torch.Tensor,
    most: int,
) -> Spread:
    """Apply what `mesh` and `options` ask for. `network` lies at its `home` and is not to be used afterwards, save through what
    is returned, which lies on the rank's device.

    `example`: two rows of input, where the network is; `most`: rows of the largest step. Raises `Invalid` where the model
    cannot be split so."""
    stages = mesh.pipe * (VIRTUAL[options.schedule] if mesh.pipe > 1 else 1)
    count = options.count(mesh)
    if mesh.pipe > 1 and options.schedule == "interleaved" and count % mesh.pipe:
        raise Invalid(f"The schedule 'interleaved' takes a multiple of pipe={mesh.pipe} micro-batches; there are {count}.")
    if mesh.pipe > 1 and options.schedule == "1f1b" and count < mesh.pipe:
        raise Invalid(f"The schedule '1f1b' takes at least pipe={mesh.pipe} micro-batches; there are {count}.")
    plan = layout(split, network, mesh, stages=stages, recompute=options.recompute)
    parted = [name for name in plan.tensor if isinstance(network.get_submodule(name), nn.Embedding)]
    if options.compile and parted:
        raise Invalid(f"compile does not take the embedding '{parted[0]}', which the axis tensor splits: leave out either.")
    place = mesh.place(gang.rank)
    owners = {name: _holder(name, plan, mesh) for name in network.state_dict()}
    autocast = gang.device.type if options.precision == "bf16" and mesh.whole else None
    if mesh.whole:
        partly = mesh.ranks > 1 and not uses_all(network, example)
        _apply(network, plan, options, gang.device)
        steps = Steps(network, measure, replicas=mesh.replicas, count=count, autocast=autocast)
        return Spread(gang, mesh, place, (network,), steps, owners, None, partly=partly)
    equalise(network, gang.device)
    if mesh.replicas > 1 or options.precision == "bf16":
        check_parts(network, [network.get_submodule(name) for name in plan.blocks])
    devices = init_device_mesh(gang.device.type, mesh.shape, mesh_dim_names=AXES)
    between = borders(network, plan.stages, example, passes=plan.passes) if mesh.pipe > 1 else []
    here = range(place.pipe, stages, mesh.pipe) if between else []
    held_here = {at: cut(network, plan.stages, at, passes=plan.passes) for at in here} or {0: network}
    release(network, held_here.values())
    for part in held_here.values():
        _apply(part, plan, options, gang.device, devices, mesh)
        bring(part, gang.device)
    runner: Runner
    if between:
        runner = Pipe(
            held_here, [rows.to(gang.device) for rows in between], devices.get_group("pipe"), measure,
            schedule=options.schedule, replicas=mesh.replicas, pieces=count, most=-(-most // mesh.replicas), passes=plan.passes,
        )  # fmt: skip
    else:
        runner = Steps(network, measure, replicas=mesh.replicas, count=count, autocast=None)
    stage = devices["data", "shard", "tensor"]._flatten("stage").get_group() if mesh.pipe > 1 else None
    tensor = devices.get_group("tensor") if mesh.tensor > 1 else None
    made = Spread(gang, mesh, place, tuple(held_here.values()), runner, owners, stage, tensor=tensor)
    names = [name for name, style in plan.tensor.items() if style == "shared"]
    made.shared = [parameter for name, parameter in made.parameters().items() if owner(name, names)]
    return made


def _apply(
    part: nn.Module,
    plan: Layout,
    options: Options,
    device: torch.device,
    devices: DeviceMesh | None = None,
    mesh: Mesh | None = None,
) -> None:
    """Tensor, recompute, compile, shard: in this order each finds what it needs. Block by block, so that `device` never has
    more of them than one whole; what is in none comes last."""
    here, bf16 = held(part), options.precision == "bf16"
    blocks = [name for name in plan.blocks if name in here]
    for name in [*blocks, ""]:
        unit = [here[name]] if name else []
        if devices and plan.tensor:
            inside = {layer: style for layer, style in plan.tensor.items() if (owner(layer, blocks) or "") == name}
            split_layers(part, devices["tensor"], inside)
        if options.recompute:
            recompute(unit)
        if options.compile:
            compile_blocks(unit if blocks else [part])
        if devices and mesh and (mesh.replicas > 1 or bf16):
            over = devices["data", "shard"] if mesh.data > 1 else devices["shard"]
            shard(here[name] if name else part, over, device, bf16=bf16, keep=mesh.pipe > 1, last=not name)


def _holder(name: str, plan: Layout, mesh: Mesh) -> int:
    for at, units in enumerate(plan.stages):
        if any(name == unit or name.startswith(f"{unit}.") for unit in units):
            return at % mesh.pipe
    return 0


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()


def _received(source: int, device: torch.device) -> torch.Tensor:
    form: list[Any] = [None, None]
    distributed.recv_object_list(form, src=source)
    tensor = torch.empty(form[0], dtype=form[1], device=device)
    distributed.recv(tensor, src=source)
    return tensor
