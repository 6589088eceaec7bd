"""What must hold before a gang starts to compute: found out in the first second, said with numbers. Called by `loop.run`."""

from __future__ import annotations

import torch

from modelyard.data import shards
from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.recipes import Plan


def check_data(plan: Plan, dataset: Dataset, world: int, batch: int) -> None:
    """Raises `Invalid` where a split lacks rows or a class, or the train split is too small for the gang."""
    for split in ("train", "select"):
        if not dataset.rows(split):
            raise Invalid(f"The {split} split has no rows; import more data.")
    shards.check(dataset.rows("train"), world, batch)
    for split in ("train", "select"):
        _check_classes(plan, dataset, split)


def check_base(plan: Plan, given: bool, recipe: str) -> None:
    """Raises `Invalid` where a base was given to a recipe that has none, or not given to one that needs it."""
    if given and plan.write is None:
        raise Invalid(f"Recipe '{recipe}' changes no base; give the version whose weights to start from as 'model'.")
    if not given and plan.write is not None:
        raise Invalid(f"Recipe '{recipe}' fine-tunes a base: give the version as the input 'base'.")


def _check_classes(plan: Plan, dataset: Dataset, split: str) -> None:
    counts = dataset.features[plan.target].statistics[split].get("counts") if plan.labels else None
    absent = [name for name, count in zip(plan.labels or (), counts or (), strict=True) if not count]
    if absent:
        raise Invalid(
            f"The {split} split has no sample of class {', '.join(map(repr, absent[:10]))} (of {len(counts or ())} classes); "
            "import more samples of it, or leave the class out."
        )


def check_answer(plan: Plan, answer: object, inputs: Array) -> None:
    """Raises `Invalid` where what forward returned for `inputs` is not one row of answers a row."""
    name = type(plan.network).__name__
    if not isinstance(answer, torch.Tensor):
        raise Invalid(f"forward of {name} returned {type(answer).__name__}; one tensor was expected.")
    rows = len(inputs)
    if plan.answer is not None:
        if answer.shape != (rows, *plan.answer):
            raise Invalid(f"forward of {name} returned shape {list(answer.shape)}; expected {[rows, *plan.answer]}.")
        return
    fits = answer.shape == (rows, len(plan.labels)) if plan.labels else answer.shape in ((rows, 1), (rows,))
    if not fits:
        wanted = f"[{rows}, {len(plan.labels)}], one logit a class" if plan.labels else f"[{rows}, 1]"
        raise Invalid(
            f"forward of {name} returned shape {list(answer.shape)} for input {list(inputs.shape)}; expected {wanted}."
        )
