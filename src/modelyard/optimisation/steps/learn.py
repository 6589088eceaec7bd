"""How a network of a version learns once more: from the train split, through the version's own transform, with the optimiser,
the batches and the shifts its own training had (`training.json`). Every step that trains does it by `Learning.fit`.

One process, one thread: the same config gives the same weights. Labels are matched by name; numbers are learned in the unit in
which the network answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from modelyard.engines.base import ModelCard
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.optimisation.calibration import unseen
from modelyard.optimisation.examples import TRAINING, Source
from modelyard.tensors import Array
from modelyard.training.checks import check_learns
from modelyard.training.config import TrainConfig
from modelyard.training.feed import Feed
from modelyard.training.loop import rate
from modelyard.training.prepare import optimiser_of
from modelyard.training.recipes import Augment, Plan
from modelyard.training.recipes.image_classifier import moved

Tensor = torch.Tensor
# A network, its inputs [n, …] and the wanted answers [n] → the mean loss, and what the network answered.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(slots=True)
class Learning:
    """What a version's networks learn from and how. `training`: its own config; `classes`: logits there must be at least, of
    labels; `order`: of the dataset's labels among the network's (None: the same, or numbers); `scale`: mean and deviation in
    which it answers numbers; `done` of `total` epochs of the whole job are told as progress, `beyond` counts what else the job
    does; `by_pixel`: pictures are laid out with the channels of a pixel beside each other; `watch` sees the network that will
    be the variant after each epoch."""

    feed: Feed
    training: TrainConfig
    labelled: bool
    classes: int
    order: Tensor | None
    scale: tuple[float, float]
    augment: Augment | None
    context: JobContext
    seed: int
    total: int
    beyond: int = 0
    done: int = 0
    by_pixel: bool = False
    watch: Callable[[nn.Module], None] | None = None
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, card: ModelCard, source: Source, context: JobContext, **more: Any) -> Learning:
        """Without the rows that judge as well. Raises `Invalid` where those are many, or a network of this version and dataset
        cannot be trained here."""
        if len(card.inputs) != 1 or card.inputs[0].datatype not in ("FP32", "FP64"):
            takes = ", ".join(f"{spec.name} {spec.datatype}" for spec in card.inputs)
            raise Invalid(f"Steps that train feed a network one tensor of numbers; this one takes {takes}: use quantize alone.")
        name = card.inputs[0].name

        def before(columns: Mapping[str, Array]) -> Array:
            return source.inputs(columns)[name]

        plan = Plan(
            network=nn.Identity(),
            weights="",
            task=card.task,
            transform=source.transform,
            features=source.features,
            before=before,
            input=name,
            output=card.outputs[0].name,
            target=source.target,
            labels=source.labels,
            loss=cross_entropy,
        )
        if not source.dataset.rows("train"):
            raise Invalid("The split 'train' of the dataset is empty: this step trains on it. Import more data.")
        among = unseen(source, "train", context.check)
        feed = Feed.read(source.dataset, "train", plan, context.check, among=among)
        if out := source.dataset.rows("train") - len(among):
            context.log(f"{out:,} rows of the train split are in select or report as well and were left out.")
        training, order = trained_as(folder), source.order()
        own = len(card.labels or source.transform.config.get("labels") or source.labels or ())
        options = training.image_classifier
        return cls(
            feed=feed,
            training=training,
            labelled=source.labels is not None,
            classes=own,
            order=None if order is None else torch.from_numpy(order),
            scale=source.scale,
            augment=moved(options.shift, flip=options.flip) if options.shift or options.flip else None,
            context=context,
            **more,
        )

    def some(self, rows: int) -> tuple[Tensor, Tensor]:
        """A few rows of the train split, drawn by the seed: inputs, and what is wanted."""
        return next(self.drawn(rows, rows))

    def drawn(self, rows: int, batch: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """So many rows of the train split, drawn by the seed, in batches of `batch` (None: training's). A dataset may be
        sorted: the first ones would be of one class."""
        draw = np.random.default_rng([self.seed, 2])
        chosen = np.sort(draw.choice(self.feed.rows, min(rows, self.feed.rows), replace=False))
        for at in range(0, len(chosen), batch := batch or self.training.batch_size):
            inputs, target = self.feed.take(chosen[at : at + batch])
            yield torch.from_numpy(inputs), self.wanted(torch.from_numpy(target))

    def check(self, network: nn.Module) -> None:
        """Raises `Invalid` where a network answers something that nothing can be learned from, or does not learn."""
        check_learns(network)
        inputs, wanted = self.some(2)
        dtype = next(network.parameters()).dtype
        with torch.no_grad():
            answer = network.eval()(inputs.to(dtype))
        name = type(network).__name__
        if not isinstance(answer, Tensor):
            raise Invalid(f"forward of {name} returned {type(answer).__name__}; steps that train take one tensor.")
        classes = None if not self.labelled else answer.shape[1] if answer.ndim == 2 else 0
        if len(answer) != len(wanted) or (classes is not None and classes < self.classes):
            least = f"[{len(wanted)}, {self.classes}], one logit a class" if self.labelled else f"[{len(wanted)}, 1]"
            raise Invalid(f"forward of {name} returned shape {list(answer.shape)}; {least}, was expected.")

    def wanted(self, target: Tensor) -> Tensor:
        """The dataset's target in the network's terms: positions among its labels, or numbers in its unit."""
        if self.labelled:
            return target if self.order is None else self.order[target]
        mean, std = self.scale
        return (target.double() - mean) / std

    def loss(self, answer: Tensor, wanted: Tensor) -> Tensor:
        """Cross-entropy of labels, mean square of numbers."""
        return cross_entropy(answer, wanted) if self.labelled else mse_loss(answer, wanted.to(answer.dtype).view_as(answer))

    @property
    def _form(self) -> torch.memory_format:
        return torch.channels_last if self.by_pixel else torch.contiguous_format

    def plainly(self, network: nn.Module, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """The objective without a teacher."""
        answer = network(inputs)
        return self.loss(answer, wanted), answer

    def fit(
        self,
        network: nn.Module,
        what: str,
        epochs: int,
        lr: float,
        objective: Objective | None = None,
        beside: Iterable[nn.Parameter] = (),
        *,
        watched: bool = True,
    ) -> None:
        """Train `network` in place, with parameters `beside` it that the objective has. Leaves it in eval mode. `watched`: it
        will be the variant. Raises `Invalid` where the loss is no number any more."""
        config = self.training.model_copy(update={"epochs": epochs, "lr": lr})
        parameters = [p for p in (*network.parameters(), *beside) if p.requires_grad]
        optimiser = optimiser_of(parameters, config)
        curve = self.curves.setdefault(what, [])
        self.by_pixel = _by_pixel(network, self.some(2)[0].to(parameters[0].dtype))
        for epoch in range(epochs):
            figures = self._epoch(network, optimiser, parameters, config, epoch, objective or self.plainly)
            if not math.isfinite(figures["loss"]):
                raise Invalid(f"{what}: the loss became {figures['loss']} in epoch {epoch + 1}; try a smaller lr than {lr:g}.")
            curve.append(figures)
            self.done += 1
            self.context.progress(self.done, self.total + self.beyond)
            said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.context.log(f"{what}: epoch {epoch + 1} of {epochs}, {said}.")
            if watched and self.watch is not None:
                self.watch(network)
        _lay_out(network.eval(), torch.contiguous_format)

    def _epoch(
        self,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        parameters: list[nn.Parameter],
        config: TrainConfig,
        epoch: int,
        objective: Objective,
    ) -> dict[str, float]:
        """One pass over the train split: the mean loss and, of labels, the share answered right on the way."""
        torch.manual_seed(int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0]))
        generator = np.random.default_rng([self.seed, epoch, 1])
        steps, dtype = self.feed.steps(config.batch_size), parameters[0].dtype
        lost, right, rows = 0.0, 0, 0
        network.train()
        for batch in self.feed.batches(self.seed, epoch, 1, 0, config.batch_size):
            self.context.check()
            pixels = self.augment(batch.inputs, generator, batch.first, batch.rows) if self.augment else batch.inputs
            for group in optimiser.param_groups:
                group["lr"] = rate(epoch * steps + batch.step, config.epochs * steps, config)
            wanted = self.wanted(torch.from_numpy(batch.target))
            optimiser.zero_grad()
            loss, answer = objective(network, torch.from_numpy(pixels).to(dtype).contiguous(memory_format=self._form), wanted)
            loss.backward()  # type: ignore[no-untyped-call]
            if config.clip is not None:
                nn.utils.clip_grad_norm_(parameters, config.clip)
            optimiser.step()
            lost, rows = lost + float(loss.detach()) * len(wanted), rows + len(wanted)
            right += int((answer.detach().argmax(dim=1) == wanted).sum()) if self.labelled else 0
        return {"loss": lost / rows} | ({"accuracy": right / rows} if self.labelled else {})


def _lay_out(network: nn.Module, form: torch.memory_format) -> None:
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=form)


def _by_pixel(network: nn.Module, inputs: Tensor) -> bool:
    """Lay out the network so that the channels of a pixel lie beside each other, by which convolutions on a processor are a
    third faster, where it takes pictures and runs on them like that: a `view` of them may not."""
    if inputs.ndim != 4:
        return False
    _lay_out(network, torch.channels_last)
    try:
        with torch.no_grad():
            network.eval()(inputs.contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        _lay_out(network, torch.contiguous_format)
        return False
    return True


def trained_as(folder: Path) -> TrainConfig:
    """What of a version's training config its later training depends on; the defaults where it says nothing of it. Images are
    shifted and mirrored only where the recipe `image-classifier` did so."""
    path = folder / TRAINING
    config = json.loads(path.read_bytes()).get("config", {}) if path.is_file() else {}
    known = {name: config[name] for name in _TAKEN if name in config}
    if config.get("recipe") != "image-classifier":
        known["image_classifier"] = {"shift": 0}
    return TrainConfig.model_validate(known)


_TAKEN = ("batch_size", "lr", "optimiser", "momentum", "weight_decay", "schedule", "warmup", "clip", "image_classifier")
