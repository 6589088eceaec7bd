"""What must hold before a gang starts to compute: found out in the first second, said with numbers. Called by `loop.run`."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelyard.data import shards
from modelyard.data.datasets import Dataset
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.mesh import Mesh
from modelyard.training.parallel.recompute import unseen
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


def check_rows(rows: int, batch: int, mesh: Mesh, pieces: int) -> None:
    """Raises `Invalid` where some step of the `rows` that the train split makes would leave a replica without one, or one of
    its `pieces`. Those of a pipe are filled up."""
    least = rows // shards.steps(rows, batch)
    needed = mesh.replicas * (1 if mesh.pipe > 1 else pieces)
    if least < needed:
        parts = f"{mesh.replicas} replicas" if mesh.pipe > 1 else f"{mesh.replicas} × {pieces} micro-batches"
        raise Invalid(
            f"Batches of {least} rows leave some of {parts} without a row: the train split makes {rows} rows, of which each of "
            f"{shards.steps(rows, batch)} steps needs {needed}. Use a larger batch_size, fewer micro_batches or more data."
        )


def check_learns(network: nn.Module) -> None:
    """Raises `Invalid` where there is nothing to train."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise Invalid(f"No parameter of {type(network).__name__} learns: each one has requires_grad=False, or there is none.")


def check_norms(network: nn.Module, row: torch.Tensor, least: int) -> None:
    """Raises `Invalid` where batch norm would take its statistics of nothing: of micro-batches of `least` rows."""
    if least > 1 or not any(isinstance(part, _BatchNorm) for part in network.modules()):
        return
    was, why = network.training, "no row"
    try:
        with torch.no_grad(), unseen(network):
            network.train()(row)
    except ValueError as error:
        why = f"one row: {error}"
    finally:
        network.train(was)
    if why != "no row" or not least:
        raise Invalid(
            f"Batch norm cannot learn from micro-batches of {why}. Use a larger batch_size or fewer micro_batches or ranks."
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
