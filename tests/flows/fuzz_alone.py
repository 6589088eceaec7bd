"""What one process makes of a case by plain torch. Of meshes it knows what docs/training.md says: which rows a replica has,
whose buffers are kept, and where random numbers begin anew."""

import importlib.util
import math

import numpy as np
import pyarrow.parquet as pq
import torch
from fuzz_cases import COLUMNS, READ, WIDTH
from torch import nn, optim
from torch.nn import functional

from modelyard.training.config import TrainConfig


def read_dataset(folder, split, target):
    table = pq.read_table(folder / split / "00000.parquet")
    return np.stack([table[name].to_numpy() for name in COLUMNS], axis=1), table[target].to_numpy()


def load_net(code):
    spec = importlib.util.spec_from_file_location("fuzzed", code / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Net


def sizes(text):
    axes = {axis: int(size) for axis, _, size in (part.partition("=") for part in text.split(","))}
    return axes.get("data", 1) * axes.get("shard", 1), axes.get("pipe", 1)


def noise(inputs, generator, first, rows):
    return inputs + 0.1 * generator.standard_normal((rows, WIDTH))[first : first + len(inputs)]


class Replicas:
    """Buffers and random numbers of those who compute on other rows."""

    def __init__(self, net, count):
        self.net, self.states = net, [None] * count
        self.buffers = [[b.clone() for b in net.buffers()] for _ in range(count)]

    def begin(self, seed):
        for at in range(len(self.states)):
            torch.manual_seed(int(np.random.SeedSequence([*seed[:2], at, seed[2]]).generate_state(1)[0]))
            self.states[at] = torch.get_rng_state()

    def share(self):
        self.buffers = [[b.clone() for b in self.buffers[0]] for _ in self.buffers]

    def enter(self, at):
        torch.set_rng_state(self.states[at])
        for buffer, kept in zip(self.net.buffers(), self.buffers[at], strict=True):
            buffer.copy_(kept)

    def leave(self, at):
        self.states[at] = torch.get_rng_state()
        self.buffers[at] = [b.clone() for b in self.net.buffers()]


def _pieces(rows, count, each):
    """Rows of each micro-batch, and how many of them are real: where all are of one size, the last is repeated."""
    for at in range(count):
        own = list(range(rows * at // count, rows * (at + 1) // count))
        yield own + [min(rows - 1, (own or [rows * at // count])[-1])] * ((each or len(own)) - len(own)), len(own)


def _measure(answer, target):
    if target.dtype == torch.int64:
        return functional.cross_entropy(answer, target)
    return functional.mse_loss(answer, target.to(answer.dtype).reshape(answer.shape))


def _rate(at, total, config):
    warm = int(total * config.warmup)
    if at < warm:
        return config.lr * (at + 1) / warm
    turn = (at - warm) / max(1, total - warm)
    return config.lr if config.schedule == "constant" else config.lr / 2 * (1 + math.cos(math.pi * turn))


def alone(case, dataset, code, stirred=0.0):
    """The state and the losses by epoch. `stirred`: of the largest gradient, what is added to all at random, to see what
    rounding alone may change: a bias before batch norm has a gradient of 0, and AdamW makes steps of what rounding leaves."""
    config = TrainConfig.model_validate(case["config"])
    torch.manual_seed(config.seed)
    net = load_net(code)(**config.module.arguments).to(getattr(torch, config.dtype))
    inputs, target = read_dataset(dataset, "train", config.module.target)
    check, answers = (torch.from_numpy(part) for part in read_dataset(dataset, "select", config.module.target))
    learning = [p for p in net.parameters() if p.requires_grad]
    optimiser = (
        optim.SGD(learning, lr=1, momentum=config.momentum, weight_decay=config.weight_decay)
        if config.optimiser == "sgd"
        else optim.AdamW(learning, weight_decay=config.weight_decay)
    )
    count = -(-len(target) // config.batch_size)
    (replicas, pipe), curve = sizes(config.mesh), []
    pieces = config.micro_batches or (2 * pipe if pipe > 1 else 1)
    each = math.ceil(math.ceil(math.ceil(len(target) / count) / replicas) / pieces) if pipe > 1 else 0
    ghosts, stir = Replicas(net, replicas), torch.Generator().manual_seed(0)
    for epoch in range(config.epochs):
        order, losses = np.random.default_rng([config.seed, epoch]).permutation(len(target)), 0.0
        for step in range(count):
            if step % (config.checkpoint_steps or count) == 0:
                ghosts.begin([config.seed, epoch, step])
                generator = np.random.default_rng([config.seed, epoch, 1, step])
            rows = order[len(order) * step // count : len(order) * (step + 1) // count]
            given = noise(inputs[rows], generator, 0, len(rows)) if case["noise"] else inputs[rows]
            x, y = torch.from_numpy(given).to(learning[0].dtype), torch.from_numpy(target[rows])
            optimiser.param_groups[0]["lr"] = _rate(epoch * count + step, config.epochs * count, config)
            optimiser.zero_grad()
            if set(case["kept"]) & READ:
                ghosts.share()
            for at in range(replicas if case["kept"] else 1):
                own = range(len(rows) * at // replicas, len(rows) * (at + 1) // replicas) if case["kept"] else range(len(rows))
                ghosts.enter(at)
                net.train()
                for piece, real in _pieces(len(own), pieces if case["kept"] else 1, each if case["kept"] else 0):
                    loss = _measure(net(x[own.start :][piece])[:real], y[own.start :][piece][:real]) if real else 0 * net(
                        x[own.start :][piece]).sum()  # fmt: skip
                    (loss * (real / len(rows))).backward()
                    losses += float(loss.detach()) * real
                ghosts.leave(at)
            if stirred:
                most = max(float(p.grad.abs().max()) for p in learning if p.grad is not None)
                for p in (p for p in learning if p.grad is not None):
                    p.grad += stirred * most * torch.randn(p.shape, generator=stir, dtype=p.dtype)
            if config.clip:
                nn.utils.clip_grad_norm_(learning, config.clip)
            optimiser.step()
        ghosts.enter(0)
        ghosts.share()
        net.eval()
        with torch.no_grad():
            curve.append([losses / len(order), float(_measure(net(check.to(x.dtype)), answers))])
    return net.state_dict(), curve
