"""A student of an encoder of texts, which has some of its layers and learns to embed as it does: each text where the teacher
puts it (N. Reimers, I. Gurevych, 2020, arXiv 2004.09813) and, with `features`, by what the layers that stayed answered. Called
by `chain`, late, since it takes transformers.

There are no labels, so that the control has the same lesson: the same student from random weights, in as many steps over the
same texts in the same order. What it lacks is what was cut from the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelyard.conversion.encoders import Encoder, open_encoder
from modelyard.errors import Invalid
from modelyard.optimisation.calibration import drawn
from modelyard.optimisation.steps.config import Distil
from modelyard.optimisation.steps.cut import Answers, apart, cut, learn
from modelyard.optimisation.steps.distil import Lesson, seeded
from modelyard.optimisation.steps.text import show
from modelyard.optimisation.variants import Subject
from modelyard.tensors import Array

_TEXTS = 32  # of a step


def teach(
    subject: Subject, step: Distil, seed: int, check: Callable[[], None], say: Callable[[str], None]
) -> tuple[Lesson, dict[str, Any]]:
    """The student as it was taught and its control, and what there is to tell. Raises `Invalid` where the teacher has too few
    layers, or the train split too few texts that judge nothing."""
    if step.alpha != Distil().alpha or step.temperature is not None:
        raise Invalid(f"'{show(step)}': an encoder of texts has neither labels nor logits: leave out alpha and temperature.")
    student = open_encoder(subject.folder, subject.card)
    model: Any = student.model
    kept = cut(model, step.layers or 0)
    with seeded(seed):
        control = open_encoder(subject.folder, subject.card, type(model)(model.config))
    texts = drawn(subject.source, step.rows, seed, "train")
    embeddings = np.concatenate([_embedded(subject, texts, at, check) for at in range(0, _rows(texts), _TEXTS)])
    curves = {}
    for name, network in (("distil", student), ("control", control)):
        objective = _Objective(subject, network, step, texts, torch.from_numpy(embeddings), kept)
        how: dict[str, Any] = {"epochs": step.epochs, "lr": step.lr, "seed": seed, "check": check}
        curves[name] = learn(network, objective, _rows(texts), _TEXTS, **how, say=partial(_called, name, say))
        objective.close()
    return Lesson(student, control), {"layers": kept, "texts": _rows(texts), "curves": curves}


class _Objective:
    """How far some texts' embeddings are from the teacher's: the mean square, by the length of those."""

    def __init__(
        self, subject: Subject, student: Encoder, step: Distil, texts: Mapping[str, Array], wanted: Tensor, kept: list[int]
    ) -> None:
        self._subject, self._student, self._step, self._texts, self._wanted = subject, student, step, texts, wanted
        self._answers = []
        if step.features:
            self._teacher = open_encoder(subject.folder, subject.card).requires_grad_(False)
            self._answers = [Answers(student.model, range(len(kept))), Answers(self._teacher.model, kept)]

    def __call__(self, rows: Array) -> float:
        batch = self._subject.source.cut({name: array[rows] for name, array in self._texts.items()})
        given = [torch.from_numpy(batch[spec.name]) for spec in self._subject.card.inputs]
        loss = apart(self._student(*given), self._wanted[rows]).mean()
        if self._answers:
            with torch.no_grad():
                self._teacher(*given)
            there = torch.from_numpy(batch["attention_mask"]).bool()
            pairs = list(zip(*(answers.values for answers in self._answers), strict=True))
            loss = loss + self._step.features * sum(apart(own[there], other[there]).mean() for own, other in pairs) / len(pairs)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def close(self) -> None:
        for answers in self._answers:
            answers.close()


def _embedded(subject: Subject, texts: Mapping[str, Array], at: int, check: Callable[[], None]) -> Array:
    """By the version's own engine, which takes a part of the time."""
    check()
    batch = subject.source.cut({name: array[at : at + _TEXTS] for name, array in texts.items()})
    return subject.engine.forward(batch)[subject.card.outputs[0].name]


def _rows(texts: Mapping[str, Array]) -> int:
    return len(next(iter(texts.values())))


def _called(name: str, say: Callable[[str], None], text: str) -> None:
    say(f"{name}: {text}")
