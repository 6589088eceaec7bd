"""The job `train`: the loop that every recipe runs in, in each rank of a gang.

Read `run`, then `Trainer.epoch`: receive a batch, forward, backward, add up, step; at the end of an epoch evaluate on the
select split and keep a checkpoint. The recipe made the network, `prepare` had it spread over the gang by `parallel`, `publish`
writes the artefact.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from torch import optim

from modelyard.data import shards
from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.tensors import Array
from modelyard.training import checkpoint, flops, together
from modelyard.training.checks import check_base, check_data
from modelyard.training.config import TrainConfig
from modelyard.training.facts import Clock, Still, grounds
from modelyard.training.feed import Feed
from modelyard.training.gang import Gang, join, repeatable
from modelyard.training.keeping import Keeper
from modelyard.training.mesh import Mesh
from modelyard.training.parallel import Spread, Sums, home
from modelyard.training.prepare import DTYPES, choose_mesh, find_shapes, foresee, make_optimiser, spread_network, tensors
from modelyard.training.publish import Trained, load_weights, publish
from modelyard.training.recipes import RECIPES, Plan
from modelyard.training.staging import Stage

_COUNT = 2.0  # seconds between two counts of samples within an epoch
_PATIENT = 10.0  # times as long as usual a rank may be silent while it loads, tries, compiles or publishes


def run(config: TrainConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the output 'model' from rank 0. Raises `Invalid` where config, code and data do not go together, and where the
    loss is no number any more."""
    context.allow(_PATIENT)
    dataset = Dataset.open(inputs["dataset"].view.local())
    model = inputs["model"].view.local() if "model" in inputs else None
    code = next((inputs[role].view.local() for role in ("code", "base") if role in inputs), model)
    with repeatable(), join(context) as gang:
        torch.manual_seed(config.seed)
        plan = RECIPES.get(config.recipe)(config, dataset, code)
        mesh, why = choose_mesh(config, plan, gang)
        check_base(plan, "base" in inputs, config.recipe)
        check_data(plan, dataset, mesh.replicas, config.batch_size)
        if model is not None:
            (plan.load or partial(load_weights, plan.network))(model)
        plan.network.to(where := home(mesh, gang.device), DTYPES[config.dtype])
        if plan.read is not None:
            plan = replace(plan, read=together.once(plan.read, gang, context))
        context.allow()
        train, select = (Feed.read(dataset, split, plan, context.check) for split in ("train", "select"))
        context.allow(_PATIENT)
        shapes = find_shapes(config, plan, where, train)
        parameters = sum(parameter.numel() for parameter in plan.network.parameters())
        context.report(mesh=str(mesh), mesh_because=why, **grounds(config.seed, inputs))
        foresee(config, plan, mesh, gang, train, context)
        trainer = Trainer.build(config, plan, mesh, gang, train, select, context)
        try:
            trainer.fit()
        finally:  # also where it was cancelled or failed: what was done counts
            context.report(samples=trainer.samples, **trainer.clock.facts(trainer.samples))
        state = trainer.network.full_state()
    if state is not None:
        publish(Trained(config, plan, trainer.progress, shapes, mesh, state, parameters), inputs, outputs, context)


def rate(step: int, total: int, config: TrainConfig) -> float:
    """The learning rate of step `step` of `total`: a linear rise, then constant, a line or half a cosine down to 0."""
    warm = int(total * config.warmup)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    done, left = step - warm, max(1, total - warm)
    if config.schedule == "linear":
        return config.lr * (1 - done / left)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done / left))


@dataclass(slots=True)
class Trainer:
    """One rank's training. `network` is the plan's as the gang trains it (`parallel`)."""

    config: TrainConfig
    plan: Plan
    gang: Gang
    context: JobContext
    train: Feed
    select: Feed
    network: Spread
    optimiser: optim.Optimizer
    progress: checkpoint.Progress
    stage: Stage
    keeper: Keeper
    samples: int = 0
    clock: Clock = field(default_factory=Clock)
    started: float = field(default_factory=time.monotonic)
    counted: float = field(default_factory=time.monotonic)

    @classmethod
    def build(
        cls, config: TrainConfig, plan: Plan, mesh: Mesh, gang: Gang, train: Feed, select: Feed, context: JobContext
    ) -> Trainer:
        """Everything in place, at the start or where the newest checkpoint left off."""
        network, work = spread_network(config, plan, mesh, gang, train, context.log)
        optimiser = make_optimiser(network, config)
        latest = context.latest()
        progress = checkpoint.load(latest, network, optimiser, learned=plan.fixed) if latest else checkpoint.Progress()
        if latest:
            within = f", step {progress.step} of the next" if progress.step else ""
            context.log(f"resumed after epoch {progress.epochs} of {config.epochs}{within}")
        stage, keeper = Stage(network, optimiser, learned=plan.fixed), Keeper(context, config.checkpoint_keep)
        clock = Clock(Still() if gang.world > 1 and gang.device.type == "cpu" else None, gang.device)
        clock.work, clock.ranks, clock.peak = work, gang.world, flops.peak_of(gang.device, config.precision)
        return cls(config, plan, gang, context, train, select, network, optimiser, progress, stage, keeper, clock=clock)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.train.steps(self.config.batch_size)

    def fit(self) -> None:
        self.clock.watch(self.network.parts)
        self.beat()
        self.clock.lap("other")
        began = time.monotonic()
        try:
            while self.progress.epochs < self.config.epochs:
                with self.network.epoch(equal=self.progress.step > 0):
                    self.stretch(self.progress.epochs)
                    self.clock.listen(getattr(self.network.runner, "model", None))
                    metrics = self.finish_epoch() if self.progress.step == self.steps else None
                if metrics is None:
                    self.keep()
                    continue
                self.context.allow()
                self.tell(metrics, time.monotonic() - began)
                began = time.monotonic()
                if self.progress.epochs % self.config.checkpoint_every == 0 or self.progress.epochs == self.config.epochs:
                    self.keep(metrics["select_loss"])
        finally:  # what is under way counts, also where training failed
            self.keeper.wait()
        self.context.allow(_PATIENT)

    def beat(self) -> None:
        """Have each micro-batch that goes forward give a sign of life. What is compiled may take longer until all shapes have
        come by."""
        check, compiles = self.context.check, self.config.compile
        self.context.allow(_PATIENT if compiles else 1.0)
        for part in self.network.parts:
            part.register_forward_pre_hook(torch.compiler.disable(lambda *_: check()) if compiles else lambda *_: check())

    def finish_epoch(self) -> dict[str, float]:
        """The mean loss (and accuracy) of its steps, over all ranks, and those of the select split."""
        progress = self.progress
        metrics = self.summary(*progress.sums)
        metrics |= {f"select_{name}": value for name, value in self.evaluate(self.select).items()}
        self.clock.lap("evaluation")
        progress.epochs, progress.step, progress.sums = progress.epochs + 1, 0, []
        progress.seen += self.train.rows
        progress.curve.append({"epoch": progress.epochs, **metrics})
        return metrics

    def stretch(self, epoch: int) -> None:
        """Steps up to the next checkpoint, at most to the epoch's end, which has then had every training row once. What is
        drawn and how sums are made begins anew with each, so that a run that resumes there does the same."""
        config, gang, first = self.config, self.gang, self.progress.step
        every = config.checkpoint_steps or self.steps
        stop = min(self.steps, (first // every + 1) * every)
        replicas, place = self.network.mesh.replicas, self.network.place
        # What computes on the same rows draws the same; stages of a pipe draw each their own.
        seed = [config.seed, epoch, place.pipe * replicas + place.replica, first]
        torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        generator = np.random.default_rng([config.seed, epoch, 1, first])
        self.network.train(True)
        totals = np.zeros(3)
        self.clock.lap("other")
        for batch in self.train.batches(config.seed, epoch, replicas, place.replica, config.batch_size, first, stop):
            inputs = batch.inputs
            if self.plan.augment:
                inputs = self.plan.augment(inputs, generator, batch.first, batch.rows)
            self.clock.lap("data")
            self.context.check()
            at = epoch * self.steps + batch.step
            for group in self.optimiser.param_groups:
                group["lr"] = rate(at, config.epochs * self.steps, config)
            totals += self.step(inputs, batch.target, batch.rows, f"step {batch.step + 1} of epoch {epoch + 1}")
            self.samples += len(batch.target) if self.network.counts else 0
            self.count()
            if gang.rank == 0:
                self.context.progress(at + 1, config.epochs * self.steps)
            self.clock.lap("other")
        before = self.progress.sums or [0.0] * len(totals)
        self.progress.step = stop
        self.progress.sums = [a + b for a, b in zip(before, gang.sum(*totals), strict=True)]

    def step(self, inputs: Array, target: Array, rows: int, where: str) -> Array:
        """One optimiser step. Returns what is counted of this rank's rows: the sum of their losses, correct answers, rows."""
        self.optimiser.zero_grad()
        whole = self.mean_over(target, rows)
        sums = self.network.step(*tensors(inputs, target, self.gang.device, self.config.dtype), whole)
        self.clock.computed()
        if not math.isfinite(sums.loss):
            raise self.diverged(f"loss became {sums.loss / sums.rows}", where)
        if self.config.clip is not None:
            length = self.network.clip(self.config.clip)
            if not math.isfinite(length):
                raise self.diverged(f"gradient's length became {length}", where)
        self.optimiser.step()
        self.clock.lap("optimiser")
        return self.tally(sums, target)

    def mean_over(self, target: Array, rows: int) -> int:
        """What the loss of a step is the mean over: its `rows`, or what the plan counts of them, in all replicas together."""
        if self.plan.count is None:
            return rows
        (total,) = self.gang.sum(self.plan.count(target) if self.network.counts else 0)
        return max(1, int(total))

    def tally(self, sums: Sums, target: Array) -> Array:
        """What adds up to means: losses, right answers, and how many the loss is a mean over."""
        rows = self.plan.count(target) if self.plan.count and sums.rows else sums.rows
        return np.array([sums.loss, sums.right, rows])

    def diverged(self, what: str, where: str) -> Invalid:
        """What the rank that sees it first says; the launcher ends the others, whose parameters are spoiled as well."""
        epochs = self.progress.epochs
        kept = f"the checkpoint of epoch {epochs} is kept" if epochs else "there is no checkpoint yet"
        return Invalid(
            f"The {what} in {where}; training stopped, {kept}. "
            f"Try a smaller lr than {self.config.lr:g}, a longer warm-up, or normalised inputs and targets."
        )

    def evaluate(self, split: Feed) -> dict[str, float]:
        """Loss (and accuracy) over a whole split, each replica answering its share."""
        network, rows = self.network, split.rows
        capacity = min(network.capacity, self.plan.capacity)
        network.share_buffers()
        network.train(False)
        own = shards.share(rows, network.mesh.replicas, network.place.replica)
        totals = np.zeros(3)
        for turn in range(shards.steps(-(-rows // network.mesh.replicas), capacity)):  # on all ranks the same number
            self.context.check()
            start = own.start + turn * capacity
            wanted = np.arange(start, min(start + capacity, own.stop))
            inputs, target = split.take(wanted if len(wanted) else np.arange(1))
            sums = network.score(*tensors(inputs, target, self.gang.device, self.config.dtype), len(wanted))
            totals += self.tally(sums, target[: len(wanted)])
        return self.summary(*self.gang.sum(*totals))

    def summary(self, loss: float, correct: float, rows: float) -> dict[str, float]:
        """Means from sums."""
        mean = float(loss / rows)
        more = self.plan.figures(mean) if self.plan.figures else {}
        return {"loss": mean} | ({"accuracy": float(correct / rows)} if self.plan.labels else {}) | dict(more)

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
            **self.clock.facts(self.samples),
        )

    def count(self) -> None:
        """Samples so far, every few seconds: should this rank be killed, they are known."""
        if time.monotonic() - self.counted >= _COUNT:
            self.counted = time.monotonic()
            self.context.report(samples=self.samples)

    def keep(self, score: float | None = None) -> None:
        """A checkpoint of this moment; it is stored while training goes on."""
        self.clock.lap("other")
        progress = self.progress
        folder = self.context.work / f"checkpoint-{progress.epochs}-{progress.step}"
        self.keeper.wait()
        write = self.stage.take(folder, progress)
        self.keeper.keep(progress.epochs * self.steps + progress.step, folder, write, score)
        self.clock.lap("checkpoint")
