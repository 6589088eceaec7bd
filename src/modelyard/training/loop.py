"""The job `train`: the loop that every recipe runs in, in each rank of a gang.

Read `run`, then `Trainer.epoch`: receive a batch, forward, backward, add up, step; at the end of an epoch evaluate on the
select split and keep a checkpoint. The recipe made the network, `parallel` spread it, `publish` writes the artefact.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn, optim

from modelyard.data import shards
from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.tensors import Array
from modelyard.training import checkpoint, parallel
from modelyard.training.checks import check_answer, check_data
from modelyard.training.config import TrainConfig
from modelyard.training.gang import Gang, join, repeatable
from modelyard.training.publish import Trained, load_weights, publish
from modelyard.training.recipes import RECIPES, Plan
from modelyard.training.rows import Rows

_EVALUATION_BATCH = 256
_COUNT = 2.0  # seconds between two counts of samples within an epoch
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def run(config: TrainConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the output 'model' from rank 0. Raises `Invalid` where config, code and data do not go together, and where the
    loss is no number any more."""
    dataset = Dataset.open(inputs["dataset"].view.local())
    model = inputs["model"].view.local() if "model" in inputs else None
    code = inputs["code"].view.local() if "code" in inputs else model
    with repeatable(), join(context) as gang:
        torch.manual_seed(config.seed)
        plan = RECIPES.get(config.recipe)(config, dataset, code)
        check_data(plan, dataset, gang.world, config.batch_size)
        if model is not None:
            load_weights(plan.network, model)
        trainer = Trainer.build(config, plan, dataset, gang, context)
        shapes = trainer.shapes()
        try:
            trainer.fit()
        finally:  # also where it was cancelled or failed: what was done counts
            context.report(samples=trainer.samples)
    if context.rank == 0:
        publish(Trained(config, plan, trainer.progress, shapes, context.world_size), inputs, outputs, context)


def rate(step: int, total: int, config: TrainConfig) -> float:
    """The learning rate of step `step` of `total`: a linear rise, then constant or half a cosine down to 0."""
    warm = int(total * config.warmup)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def make_optimiser(network: nn.Module, config: TrainConfig) -> optim.Optimizer:
    """Over the parameters that learn."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if config.optimiser == "sgd":
        return optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)


@dataclass(slots=True)
class Trainer:
    """One rank's training. `network` is the bare one, `model` the same as the gang trains it (`parallel`)."""

    config: TrainConfig
    plan: Plan
    gang: Gang
    context: JobContext
    train: Rows
    select: Rows
    network: nn.Module
    model: nn.Module
    optimiser: optim.Optimizer
    progress: checkpoint.Progress
    samples: int = 0
    started: float = field(default_factory=time.monotonic)
    counted: float = field(default_factory=time.monotonic)

    @classmethod
    def build(cls, config: TrainConfig, plan: Plan, dataset: Dataset, gang: Gang, context: JobContext) -> Trainer:
        """Everything in place, at the start or where the newest checkpoint left off."""
        network = plan.network.to(gang.device, _DTYPES[config.dtype])
        optimiser = make_optimiser(network, config)
        latest = context.latest()
        progress = checkpoint.load(latest, network, optimiser, gang.device) if latest else checkpoint.Progress()
        if latest:
            context.log(f"resumed after epoch {progress.epochs} of {config.epochs}")
        train, select = (Rows.read(dataset, split, plan, context.check) for split in ("train", "select"))
        return cls(config, plan, gang, context, train, select, network, network, optimiser, progress)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return shards.steps(len(self.train.target), self.config.batch_size)

    def fit(self) -> None:
        while self.progress.epochs < self.config.epochs:
            began = time.monotonic()
            # anew for each epoch: what torch learns of a network's order while it runs would change the order of sums on resume
            with parallel.applied(self.network, self.gang) as self.model:
                metrics = self.epoch(self.progress.epochs)
                metrics |= {f"select_{name}": value for name, value in self.evaluate(self.select).items()}
            self.progress.epochs += 1
            self.progress.seen += len(self.train.target)
            self.progress.curve.append({"epoch": self.progress.epochs, **metrics})
            self.tell(metrics, time.monotonic() - began)
            if self.progress.epochs % self.config.checkpoint_every == 0 or self.progress.epochs == self.config.epochs:
                self.keep()

    def epoch(self, epoch: int) -> dict[str, float]:
        """Every training row once. Returns the mean loss (and accuracy) of its steps, over all ranks."""
        config, gang, rows = self.config, self.gang, len(self.train.target)
        torch.manual_seed(int(np.random.SeedSequence([config.seed, epoch, gang.rank]).generate_state(1)[0]))
        generator = np.random.default_rng([config.seed, epoch, 1])
        self.model.train()
        totals = np.zeros(3)
        for step, part in enumerate(shards.positions(rows, epoch, config.seed, gang.world, gang.rank, config.batch_size)):
            self.context.check()
            at = epoch * self.steps + step
            for group in self.optimiser.param_groups:
                group["lr"] = rate(at, config.epochs * self.steps, config)
            inputs, target = self.train.take(part.positions)
            if self.plan.augment:
                inputs = self.plan.augment(inputs, generator, part.first, part.rows)
            totals += self.step(inputs, target, part.rows, f"step {step + 1} of epoch {epoch + 1}")
            self.samples += len(target)
            self.count()
            if gang.rank == 0:
                self.context.progress(at + 1, config.epochs * self.steps)
        return self.summary(*gang.sum(*totals))

    def step(self, inputs: Array, target: Array, rows: int, where: str) -> Array:
        """One optimiser step. Returns, of this rank's rows: the sum of their losses, correct answers, rows."""
        self.optimiser.zero_grad()
        loss, correct = self.forward(inputs, target)
        (loss * parallel.weight(len(target), rows, self.gang)).backward()
        totals = self.totals(loss, correct, len(target))
        if not math.isfinite(totals[0]):
            raise self.diverged(totals[0] / len(target), where)
        self.optimiser.step()
        return totals

    def diverged(self, loss: float, where: str) -> Invalid:
        """What the rank that sees it first says; the launcher ends the others, whose parameters are spoiled as well."""
        epochs = self.progress.epochs
        kept = f"the checkpoint of epoch {epochs} is kept" if epochs else "there is no checkpoint yet"
        return Invalid(
            f"The loss became {loss} in {where}; training stopped, {kept}. "
            f"Try a smaller lr than {self.config.lr:g}, a longer warm-up, or normalised inputs and targets."
        )

    def forward(self, inputs: Array, target: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss of these rows, and how many are answered right (0 where numbers are predicted)."""
        device, dtype = self.gang.device, _DTYPES[self.config.dtype]
        answer = self.model(torch.from_numpy(inputs).to(device, dtype))
        wanted = torch.from_numpy(target).to(device)
        if self.plan.labels is None:
            return self.plan.loss(answer, wanted.to(dtype).reshape(answer.shape)), torch.zeros((), device=device)
        return self.plan.loss(answer, wanted), (answer.argmax(dim=1) == wanted).sum()

    def totals(self, loss: torch.Tensor, correct: torch.Tensor, rows: int) -> Array:
        """What `forward` found, as numbers that add up. The one place of a step that waits for the device."""
        mean, right = torch.stack([loss.detach().double(), correct.double()]).tolist()
        return np.array([mean * rows, right, rows])

    def evaluate(self, split: Rows) -> dict[str, float]:
        """Loss (and accuracy) over a whole split, each rank answering its share."""
        self.gang.share_buffers(self.network)
        self.model.eval()
        own = shards.share(len(split.target), self.gang.world, self.gang.rank)
        totals = np.zeros(3)
        with torch.no_grad():
            for start in range(own.start, own.stop, _EVALUATION_BATCH):
                self.context.check()
                inputs, target = split.take(np.arange(start, min(start + _EVALUATION_BATCH, own.stop)))
                totals += self.totals(*self.forward(inputs, target), len(target))
        return self.summary(*self.gang.sum(*totals))

    def summary(self, loss: float, correct: float, rows: float) -> dict[str, float]:
        """Means from sums."""
        return {"loss": float(loss / rows)} | ({"accuracy": float(correct / rows)} if self.plan.labels else {})

    def tell(self, metrics: dict[str, float], seconds: float) -> None:
        """Metrics of an epoch from rank 0; facts from every rank."""
        if self.gang.rank == 0:
            self.context.metric(self.progress.epochs, **metrics, seconds=seconds)
        self.context.report(
            pid=os.getpid(),
            samples=self.samples,
            steps=self.progress.epochs * self.steps,
            seconds=round(time.monotonic() - self.started, 3),
            device=str(self.gang.device),
            threads=torch.get_num_threads(),
        )

    def count(self) -> None:
        """Samples so far, every few seconds: should this rank be killed, they are known."""
        if time.monotonic() - self.counted >= _COUNT:
            self.counted = time.monotonic()
            self.context.report(samples=self.samples)

    def keep(self) -> None:
        """A checkpoint, stored when this returns."""
        if self.gang.rank == 0:
            folder = self.context.work / f"checkpoint-{self.progress.epochs}"
            checkpoint.save(folder, self.network, self.optimiser, self.progress)
            self.context.checkpoint(self.progress.epochs, folder)
            shutil.rmtree(folder)

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of input and output, found by asking for two rows. Raises `Invalid` where the answer does not fit."""
        inputs, _ = self.train.take(np.arange(min(2, len(self.train.target))))
        self.network.eval()
        try:
            with torch.no_grad():
                answer = self.network(torch.from_numpy(inputs).to(self.gang.device, _DTYPES[self.config.dtype]))
        except (RuntimeError, TypeError, ValueError) as error:
            name = type(self.network).__name__
            raise Invalid(f"forward of {name} failed on an input of shape {list(inputs.shape)}: {error}") from error
        check_answer(self.plan, answer, inputs)
        return (-1, *inputs.shape[1:]), (-1, *answer.shape[1:])
