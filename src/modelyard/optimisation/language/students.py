"""A language model's student, which has some of its layers and learns to foretell as it does: from the logits of each token
(G. Hinton et al., 2015, arXiv 1503.02531), from the texts and, with `features`, from what the layers that stayed answered.
Called by `run`, before anything is pruned or rounded.

Beside it the control: the same layers, which learn from the texts alone, in as many steps over the same blocks in the same
order. From random weights it would foretell next to nothing after that, and any teacher would look well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from modelyard.conversion.gguf import KIND
from modelyard.engines.huggingface import copy_companions, open_model
from modelyard.kinds import JobContext
from modelyard.optimisation.config import OptimiseConfig
from modelyard.optimisation.language.losses import Foretold, drop, interval
from modelyard.optimisation.language.texts import foretell
from modelyard.optimisation.steps.config import Distil
from modelyard.optimisation.steps.cut import Answers, apart, cut, learn
from modelyard.tensors import Array
from modelyard.training.recipes.causal_lm import predict
from modelyard.training.recipes.packing import IGNORED, Blocks

_AT_ONCE = 1024  # tokens
_TOKENS = 2048  # of a step
_TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """Folders of the student as it was taught and of its control, as transformers opens them, and what there is to tell."""

    distilled: Path
    control: Path
    told: Mapping[str, Any]


def distil(fresh: Callable[[], Any], folder: Path, step: Distil, blocks: Blocks, seed: int, context: JobContext) -> Lesson:
    """Teach a student and train its control. `fresh` opens the teacher, whose tokenizer lies in `folder`. Raises `Invalid`
    where it has too few layers."""
    curves: dict[str, Any] = {}
    kept: list[int] = []
    teacher, outs = fresh().requires_grad_(False), (context.work / "distilled", context.work / "control")
    for name, out in zip(("distil", "control"), outs, strict=True):
        student = fresh()
        kept = cut(student, step.layers or 0)
        objective = _Objective(student, blocks, step, context.check, teacher if name == "distil" else None, kept)
        curves[name] = learn(
            student,
            objective,
            len(blocks.targets),
            max(1, _TOKENS // blocks.targets.shape[1]),
            epochs=step.epochs,
            lr=step.lr,
            seed=seed,
            check=context.check,
            say=lambda text, name=name: context.log(f"{name}: {text}"),  # type: ignore[misc]
        )
        objective.close()
        student.save_pretrained(out)
        copy_companions(folder, out)
    return Lesson(*outs, {"layers": kept, "tokens": blocks.learned, "curves": curves})


def worth(
    lesson: Lesson, blocks: Blocks, teacher: Foretold, config: OptimiseConfig, check: Callable[[], None]
) -> dict[str, Any]:
    """By name the perplexity of teacher, student and control with its interval, and `gain`: by how many percent the control's
    is larger than the student's, the same blocks drawn for both. Students as they were right after the lesson, in float."""
    found = {"teacher": teacher}
    for name, folder in (("distilled", lesson.distilled), ("control", lesson.control)):
        model, _ = open_model(folder, KIND, dtype=torch.float32)
        found[name] = foretell(model, blocks, check)
    figures = {name: interval(one, config.confidence, config.seed).to_json() for name, one in found.items()}
    gain = drop(found["distilled"], found["control"], config.confidence, config.seed).to_json()
    return {"rows": teacher.independent, **figures, "gain": gain, "against": "the same layers, from the texts alone"}


class _Objective:
    """The loss of some blocks, a mean over their tokens; without a teacher it is the texts' alone."""

    def __init__(
        self, student: Any, blocks: Blocks, step: Distil, check: Callable[[], None], teacher: Any, kept: Sequence[int]
    ) -> None:
        self._student, self._blocks, self._step, self._check, self._teacher = student, blocks, step, check, teacher
        self._answers = []
        if teacher is not None and step.features:
            self._answers = [Answers(student, range(len(kept))), Answers(teacher, kept)]

    def __call__(self, rows: Array) -> float:
        blocks, each = self._blocks, max(1, _AT_ONCE // self._blocks.targets.shape[1])
        total, tokens = 0.0, int((blocks.targets[rows] != IGNORED).sum())
        for some in (rows[at : at + each] for at in range(0, len(rows), each)):
            self._check()
            loss = self._loss(torch.from_numpy(blocks.inputs[some]), torch.from_numpy(blocks.targets[some]).long()) / tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Added up over the tokens that are foretold."""
        step, counted = self._step, targets != IGNORED
        logits = predict(self._student, inputs)[counted]
        labels = cross_entropy(logits, targets[counted], reduction="sum")
        if self._teacher is None:
            return labels
        with torch.no_grad():
            theirs = predict(self._teacher, inputs)[counted]
        temperature = step.temperature or _TEMPERATURE
        ours, wanted = (log_softmax(each / temperature, -1) for each in (logits, theirs))
        # times the temperature squared, so that its gradients are as large as those of the labels
        loss = (1 - step.alpha) * labels + step.alpha * temperature**2 * kl_div(ours, wanted, log_target=True, reduction="sum")
        if self._answers:
            pairs = list(zip(*(answers.values for answers in self._answers), strict=True))
            loss = loss + step.features * sum(apart(own[counted], other[counted]).sum() for own, other in pairs) / len(pairs)
        return loss

    def close(self) -> None:
        for answers in self._answers:
            answers.close()
