"""From a recipe's plan to a network that a gang is about to train: which mesh, what it takes and answers, spread and verified.

Called by `loop` once, in every rank; what does not go together is said here, before the first step.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import distributed, nn, optim

from modelyard.data import shards
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.tensors import Array
from modelyard.training import estimate as memory
from modelyard.training import flops
from modelyard.training import mesh as meshes
from modelyard.training.checks import check_answer, check_learns, check_norms, check_rows
from modelyard.training.config import TrainConfig
from modelyard.training.feed import Feed
from modelyard.training.gang import Gang
from modelyard.training.mesh import Mesh
from modelyard.training.parallel import Options, Spread, Whole, home, spread, verify, whole
from modelyard.training.recipes import Plan

DTYPES = {"float32": torch.float32, "float64": torch.float64}
Shape = tuple[int, ...]
_TAIL = 4000  # characters of a traceback, its end


def choose_mesh(config: TrainConfig, plan: Plan, gang: Gang) -> tuple[Mesh, str]:
    """The mesh that `config` names, or the one that fits, and why. Raises `Invalid` where it is not of the gang's ranks."""
    meshes.check(config.mesh, gang.world)
    if config.mesh == meshes.DATA:
        return Mesh(data=gang.world), "every rank holds the whole model, as nothing else was asked for"
    if config.mesh != meshes.AUTO:
        return Mesh(**meshes.parse(config.mesh)), "as was asked for"
    state = 2 if config.optimiser == "adamw" else int(config.momentum > 0)
    held = [(parameter.numel(), parameter.requires_grad) for parameter in plan.network.parameters()]
    parameters = sum(count for count, _ in held)
    numbers = sum(count * (2 + state if learns else 1) for count, learns in held)
    each = -(-numbers * DTYPES[config.dtype].itemsize // max(1, parameters))
    return meshes.propose(parameters, each, gang.world, _memory(gang), plan.split.limits(plan.network))


def options(config: TrainConfig) -> Options:
    return Options(
        pieces=config.micro_batches,
        precision=config.precision,
        recompute=config.recompute,
        compile=config.compile,
        schedule=config.pipe_schedule,
    )


def tensors(inputs: Array, target: Array, device: torch.device, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as the network on `device` takes them: numbers in its dtype; positions in a vocabulary and targets as they are."""
    given = torch.from_numpy(inputs)
    dtypes = DTYPES[dtype] if given.is_floating_point() else given.dtype
    return given.to(device, dtypes), torch.from_numpy(target).to(device)


def find_shapes(config: TrainConfig, plan: Plan, where: torch.device, train: Feed) -> tuple[Shape, Shape]:
    """The shapes of input and output, by two rows `where` the network lies. Raises `Invalid` where the answer does not fit."""
    inputs, target = train.take(np.arange(min(2, train.rows)))
    plan.network.eval()
    try:
        with torch.no_grad():
            answer = plan.network(tensors(inputs, target, where, config.dtype)[0])
    except (RuntimeError, TypeError, ValueError) as error:
        name = type(plan.network).__name__
        raise Invalid(f"forward of {name} failed on an input of shape {list(inputs.shape)}: {error}") from error
    check_answer(plan, answer, inputs)
    return (-1, *inputs.shape[1:]), (-1, *answer.shape[1:])


def foresee(config: TrainConfig, plan: Plan, mesh: Mesh, gang: Gang, train: Feed, context: JobContext) -> None:
    """Report what a rank will need at the least, found by a forward of one and of two rows where the network lies. Raises
    `Invalid` where it may not take so much."""
    where = home(mesh, gang.device)

    def kept(rows: int) -> int:
        inputs, target = tensors(*train.take(np.arange(rows)), where, config.dtype)
        with torch.autocast(where.type, torch.bfloat16, enabled=config.precision == "bf16"):
            return memory.measure(plan.network, inputs, lambda answer: plan.measure(answer, target)[0])

    more = min(2, train.rows)
    # What is forgotten and computed again takes memory too, but how much is for each network to say.
    line = memory.Activations() if config.recompute else memory.fit(1, kept(1), more, kept(more))
    parameters = list(plan.network.parameters())
    whole, on_gpu = sum(p.nbytes for p in parameters), gang.device.type == "cuda"
    learning = sum(p.nbytes for p in parameters if p.requires_grad)
    slots = 2 if config.optimiser == "adamw" else int(config.momentum > 0)
    found = memory.estimate(
        parameters=whole,
        learning=learning,
        slots=slots,
        activations=line,
        rows=-(-config.batch_size // (mesh.replicas * options(config).count(mesh))),
        copied=0 if on_gpu else ((learning if plan.fixed else whole) + slots * learning) // mesh.data,
        parts=mesh.shard * mesh.tensor * mesh.pipe,
        slices=mesh.tensor,
        process=0 if on_gpu else max(0, memory.held() - whole),
    )
    bound = memory.of(gang.device)
    context.report(memory_estimate=found.facts(bound))
    memory.check(found, bound)


def rehearse(config: TrainConfig, plan: Plan, mesh: Mesh, gang: Gang, train: Feed) -> float:
    """One micro-batch of real rows, as large as the largest, goes through the whole network, forward and backward, before the
    first step: what the model's code cannot do, or what does not fit, is said here. Returns the FLOPs of a row (0: unknown).

    Of a network that is split no device has the memory for that: `verify` has it compute instead."""
    rows = -(-config.batch_size // (mesh.replicas * options(config).count(mesh)))
    if config.recompute:
        rows = 1  # blocks do not forget yet
    inputs, target = tensors(*train.take(np.arange(min(rows, train.rows))), gang.device, config.dtype)
    was = plan.network.training
    plan.network.eval()
    for part in plan.network.modules():
        if isinstance(part, nn.RNNBase):  # on a GPU these go back in training mode alone
            part.train()

    def compute() -> None:
        with torch.autocast(gang.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            answer = plan.network(inputs)
        plan.measure(answer.float() if answer.dtype == torch.bfloat16 else answer, target)[0].backward()
        plan.network.zero_grad()

    try:
        return flops.counted(compute) / len(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if memory.no_memory(error):  # told as that, with the estimate
            raise
        name, where = type(plan.network).__name__, "".join(traceback.format_exception(error))[-_TAIL:].strip()
        raise Invalid(
            f"forward or backward of {name} failed on a micro-batch of {len(inputs)} rows, before the first step: {error}\n"
            f"{where}"
        ) from error
    finally:
        plan.network.train(was)


def spread_network(
    config: TrainConfig, plan: Plan, mesh: Mesh, gang: Gang, train: Feed, say: Callable[[str], None]
) -> tuple[Spread, float]:
    """The plan's network, which lives on in what this returns alone; and the FLOPs of a step over all ranks (0: unknown).
    Raises `Invalid` where it cannot be split so, or computes something else when it is. `say` takes a line for the log."""
    rows = train.rows
    steps, asked = shards.steps(rows, config.batch_size), options(config)
    least, most = rows // steps, -(-rows // steps)
    pieces = asked.count(mesh)
    check_learns(plan.network)
    check_rows(rows, config.batch_size, mesh, pieces)
    some = train.take(np.arange(min(least, mesh.replicas * pieces + 1)))
    inputs, target = tensors(*some, home(mesh, gang.device), config.dtype)
    check_norms(plan.network, inputs[:1], least // mesh.replicas // pieces)
    each, before = 0.0, None
    if mesh.whole:
        each = rehearse(config, plan, mesh, gang, train)
    elif config.verify:
        before, each = measure_whole(plan, gang, inputs, target, say)
    network = spread(plan.network, plan.split, mesh, gang, asked, plan.measure, example=inputs[:2], most=most)
    if before:
        verify(network, before, inputs.to(gang.device), target.to(gang.device))
    return network, each * rows / steps


def measure_whole(
    plan: Plan, gang: Gang, inputs: torch.Tensor, target: torch.Tensor, say: Callable[[str], None]
) -> tuple[Whole | None, float]:
    """What the whole network says of some rows, and the FLOPs of a row, which rank 0 tells the others. None where rank 0 has no
    room for its gradients."""
    lack = None
    if gang.rank == 0:
        kept = memory.measure(plan.network, inputs[:1], lambda answer: plan.measure(answer, target[:1])[0]) * len(inputs)
        gradients = sum(parameter.nbytes for parameter in plan.network.parameters() if parameter.requires_grad)
        lack = memory.lack(kept + gradients, memory.spare())
    if lack:
        say(f"the split network is not compared with the whole one: rank 0 would need {lack}; a wrong plan is not seen")
    if any(gang.sum(bool(lack))):
        return None, 0.0
    found: list[Whole] = []
    total = flops.counted(lambda: found.append(whole(plan.network, plan.measure, gang, inputs, target)))
    (total_of_first,) = gang.sum(total if gang.rank == 0 else 0)
    return found[-1], total_of_first / len(inputs)


def make_optimiser(network: Spread, config: TrainConfig) -> optim.Optimizer:
    """Over the parameters that learn and are held here."""
    parameters = [parameter for parameter in network.parameters().values() if parameter.requires_grad]
    # parameters in parts and whole ones do not go in one operation
    return optimiser_of(parameters, config, False if network.mesh.tensor > 1 else None)


def optimiser_of(parameters: Sequence[nn.Parameter], config: TrainConfig, each: bool | None = None) -> optim.Optimizer:
    """The optimiser that `config` names, over `parameters`. `each` False: one after another, None: as torch sees fit."""
    decay = config.weight_decay
    if config.optimiser == "sgd":
        return optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=decay, foreach=each)
    return optim.AdamW(parameters, lr=config.lr, weight_decay=decay, foreach=each)


def _memory(gang: Gang) -> int:
    """What each rank has: of its GPU, or an even part of its machine; the same answer on every rank, so that of the poorest."""
    if gang.device.type == "cuda":
        own = memory.of(gang.device) or 0
    else:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // gang.here
        own = min(machine, memory.bound() or machine)
    if gang.world > 1:
        least = torch.tensor(own, device=gang.device)
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        own = int(least)
    return own
