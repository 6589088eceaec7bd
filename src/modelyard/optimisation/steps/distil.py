"""A teacher's answers as a lesson: the student learns the labels and how the teacher spreads its belief over all of them (G.
Hinton et al., 2015, arXiv 1503.02531) and, with `features`, what the teacher's last layer takes (A. Romero et al., 2015,
FitNets, arXiv 1412.6550).

Beside it the control: the same student from scratch, by the labels alone, for as many epochs in the same order. Without it
nobody knows what the teacher was worth.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.functional import kl_div, log_softmax, mse_loss

from modelyard.engines.base import ENGINES, BatchEngine, ModelCard, ModuleCard
from modelyard.engines.torch import build_module
from modelyard.errors import Invalid
from modelyard.fields import explain
from modelyard.optimisation.examples import Source
from modelyard.optimisation.steps.config import Distil
from modelyard.optimisation.steps.learn import Learning
from modelyard.tensors import DATATYPES
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import RECIPES

Tensor = torch.Tensor
_ALIKE = 1e-5  # of what two recipes make of the same rows
_TEMPERATURE = 4.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """What came of it: the student as it was taught, and the control."""

    distilled: nn.Module
    control: nn.Module


def distil(
    teacher: nn.Module, student: nn.Module, fresh: nn.Module, step: Distil, learning: Learning, *, spent: int = 0
) -> Lesson:
    """Teach `student`, in place; train `fresh`, the same network from scratch, in the same way without the teacher, and for the
    epochs that were `spent` on the student before. Raises `Invalid` where the target is a number, or teacher and student do not
    answer equally many labels."""
    if not learning.labelled:
        raise Invalid("distil teaches classifiers; this dataset's target is a number. Use prune and finetune.")
    inputs, _ = learning.some(2)
    theirs, own = (_answer(network, inputs).shape for network in (teacher, student))
    if theirs != own:
        raise Invalid(f"The student answers {list(own[1:])} labels, the teacher {list(theirs[1:])}; they need the same ones.")
    lr = step.lr or learning.training.lr
    objective = _Taught(teacher.eval().requires_grad_(False), student, step, learning, inputs)
    learning.fit(student, "distil", step.epochs, lr, objective, objective.beside)
    objective.close()
    learning.fit(fresh, "control", spent + step.epochs, lr, watched=False)
    return Lesson(student, fresh)


class Served(nn.Module):
    """A version as its own engine answers, which takes a third of the time and learns nothing: a teacher of which nobody asks
    what its layers take. The engine has as many threads as torch has."""

    def __init__(self, folder: Path, card: ModelCard) -> None:
        super().__init__()
        self._engine = cast(BatchEngine, ENGINES.get(card.engines[0])(folder, card, threads=torch.get_num_threads()))
        self._input, self._output = card.inputs[0], card.outputs[0].name

    def forward(self, inputs: Tensor) -> Tensor:
        given = inputs.detach().numpy().astype(DATATYPES[self._input.datatype], copy=False)
        return torch.from_numpy(self._engine.forward({self._input.name: given})[self._output]).to(inputs.dtype)


class _Taught:
    """The objective of a student."""

    def __init__(self, teacher: nn.Module, student: nn.Module, step: Distil, learning: Learning, inputs: Tensor) -> None:
        self._teacher, self._step, self._learning = teacher, step, learning
        self.beside: list[nn.Parameter] = []
        if step.features:
            self._theirs, self._own = _Taken(teacher, inputs), _Taken(student, inputs)
            self._fitted = self._regressor(student, inputs)

    def __call__(self, student: nn.Module, inputs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        step, answer = self._step, student(inputs)
        with torch.no_grad():
            theirs = self._teacher(inputs)
        loss = (1 - step.alpha) * self._learning.loss(answer, wanted)
        if step.alpha:
            # times the temperature squared, so that its gradients are as large as those of the labels
            temperature = step.temperature or _TEMPERATURE
            ours, teachers = (log_softmax(logits / temperature, dim=1) for logits in (answer, theirs))
            apart = kl_div(ours, teachers, log_target=True, reduction="batchmean")
            loss = loss + step.alpha * temperature**2 * apart
        if step.features:
            loss = loss + step.features * mse_loss(self._fitted(self._own.take()), _scaled(self._theirs.take()))
        return loss, answer

    def _regressor(self, student: nn.Module, inputs: Tensor) -> nn.Linear:
        """From the student's features to the teacher's, learned with it."""
        for network in (self._teacher, student):
            _answer(network, inputs)
        own = self._own.take()
        with seeded(self._learning.seed):
            made = nn.Linear(own.shape[-1], self._theirs.take().shape[-1])
        made.to(own.dtype)
        self.beside = list(made.parameters())
        return made

    def close(self) -> None:
        """Take the hooks away."""
        if self._step.features:
            self._theirs.close()
            self._own.close()


class _Taken:
    """What the last linear layer of a network took when it ran last. It hangs on the network, which who watches it
    copies, and a tensor with a history cannot be: `take` leaves none."""

    def __init__(self, network: nn.Module, inputs: Tensor) -> None:
        called: list[nn.Module] = []
        hooks = [
            layer.register_forward_hook(lambda layer, *_: called.append(layer))
            for layer in network.modules()
            if isinstance(layer, nn.Linear)
        ]
        _answer(network, inputs)
        for hook in hooks:
            hook.remove()
        if not called:
            raise Invalid(f"{type(network).__name__} has no linear layer whose input could be compared: use features=0.")
        self._value = torch.empty(0)
        self._hook = called[-1].register_forward_pre_hook(self._keep)

    def _keep(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._value = given[0]

    def take(self) -> Tensor:
        value, self._value = self._value, torch.empty(0)
        return value

    def close(self) -> None:
        self._hook.remove()


def anew(network: nn.Module, seed: int) -> nn.Module:
    """A network of the same layers with weights drawn anew; a parameter that no layer draws gets the mean and the spread it
    had."""
    fresh = copy.deepcopy(network)
    with seeded(seed):
        drawn: set[int] = set()
        for layer in fresh.modules():
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()
                drawn |= {id(parameter) for parameter in layer.parameters(recurse=False)}
        with torch.no_grad():
            for parameter in fresh.parameters():
                if id(parameter) not in drawn:
                    spread = float(parameter.std()) if parameter.numel() > 1 else 0.0
                    parameter.normal_(float(parameter.mean()), spread)
    return fresh


def build_student(folder: Path, card: ModuleCard, source: Source, student: Mapping[str, Any], seed: int) -> nn.Module:
    """A fresh network: of the version's class with some arguments changed, or of the recipe that `student` names. Raises
    `Invalid` where there is none such, or it takes something else of the same rows."""
    with seeded(seed):
        if "recipe" in student:
            return _of_recipe(source, student)
        if unknown := sorted(set(student) - set(card.arguments)):
            known = ", ".join(card.arguments) or "none"
            raise Invalid(f"{card.name} was not built with {', '.join(unknown)}; its arguments are {known}.")
        return build_module(folder, card.changed(arguments={**card.arguments, **student}))


def _of_recipe(source: Source, student: Mapping[str, Any]) -> nn.Module:
    try:
        config = TrainConfig.model_validate(dict(student))
    except ValidationError as error:
        raise Invalid(f"student: {explain(error, TrainConfig, 'an option of a recipe')}.") from error
    plan = RECIPES.get(config.recipe)(config, source.dataset, None)
    if plan.before is None:
        raise Invalid(f"Recipe '{config.recipe}' trains no student: it reads its rows itself.")
    columns = source.dataset.columns("calibrate", list(dict.fromkeys((*source.features, *plan.features))))
    few = {name: array[:8] for name, array in columns.items()}
    own, (theirs, *_) = plan.before(few), source.inputs(few).values()
    if own.shape != theirs.shape or not np.allclose(own, theirs, atol=_ALIKE):
        raise Invalid(
            f"The student of recipe '{config.recipe}' takes other inputs of the same rows ({list(own.shape[1:])}) than the "
            f"teacher ({list(theirs.shape[1:])}); they need the same transform."
        )
    return plan.network


def _scaled(features: Tensor) -> Tensor:
    """Of unit spread, so that the weight of features means the same for every teacher."""
    return features / features.std().clamp(min=1e-6)


def _answer(network: nn.Module, inputs: Tensor) -> Tensor:
    """In evaluation mode, which is left as it was."""
    was = network.training
    with torch.no_grad():
        answer: Tensor = network.eval()(inputs)
    network.train(was)
    return answer


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn inside depends on `seed` alone, and changes nothing outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
