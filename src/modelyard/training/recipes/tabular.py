"""Recipe `tabular`: a residual network for classes or numbers, from columns of numbers and of categories as they are.

What a column becomes is decided by the train split alone (`data/columns.py`) and kept with the model, so that callers send raw
rows. Registered in `config.py`; the loop runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss

from modelyard.data.columns import ColumnsTransform
from modelyard.data.datasets import Dataset, Feature
from modelyard.data.transforms import build
from modelyard.engines.base import ModuleCard
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.config import Tabular, TrainConfig
from modelyard.training.recipes import Plan
from modelyard.training.recipes.networks import tabular as networks
from modelyard.training.split import Split

_INPUT, _OUTPUT = "columns", "output"


def tabular(config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan:
    """Raises `Invalid` or `NotFound` where the columns are none it can use, each by its name."""
    options = config.tabular
    if not dataset.rows("train"):
        raise Invalid("The train split has no rows; import more data.")
    target = find_target(dataset, options)
    labels, features = dataset.feature(target).names, find_inputs(dataset, options, target)
    mean, std = (0.0, 1.0) if labels else _spread(dataset.feature(target), target)
    transform = build(
        {
            "name": "columns",
            "columns": [column(name, dataset.feature(name)) for name in features],
            "labels": labels,
            "mean": mean,
            "std": std,
            "input": _INPUT,
            "output": _OUTPUT,
        }
    )
    assert isinstance(transform, ColumnsTransform)
    arguments: dict[str, Any] = {
        "inputs": transform.width,
        "outputs": len(labels) if labels else 1,
        "width": options.width,
        "blocks": options.blocks,
        "dropout": options.dropout,
    }

    def before(rows: Mapping[str, Array]) -> Array:
        return transform.before(rows)[_INPUT]

    def away(answer: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return mse_loss(answer, (wanted - mean) / std)

    return Plan(
        network=networks.TabularNetwork(**arguments),
        module=ModuleCard(file="model.py", name="TabularNetwork", arguments=arguments),
        source=Path(networks.__file__),
        weights="model.safetensors",
        task="tabular-classification" if labels else "tabular-regression",
        transform=transform,
        features=features,
        before=before,
        input=_INPUT,
        output=_OUTPUT,
        target=target,
        labels=labels,
        loss=cross_entropy if labels else away,
        figures=None if labels else lambda loss: {"rmse": std * loss**0.5},
        split=Split.read(networks.PARALLEL),
    )


def find_target(dataset: Dataset, options: Tabular) -> str:
    """The column to predict. Raises `Invalid` where it can be neither told apart nor counted."""
    name = options.target or dataset.target
    if name is None:
        raise Invalid(f"The dataset has no target; name one in tabular.target: {', '.join(dataset.features)}.")
    feature = dataset.feature(name)
    if feature.type not in ("label", "float", "int"):
        raise Invalid(
            f"The target '{name}' is of type {feature.type}; numbers or classes were expected: import the dataset with "
            f"'{name}' as its target, which makes classes of its texts."
        )
    if feature.names is not None and len(feature.names) < 2:
        raise Invalid(f"The target '{name}' has one class, {feature.names[0]!r}; there is nothing to tell it apart from.")
    missing = sum(known.get("missing", 0) for known in feature.statistics.values())
    if missing:
        raise Invalid(f"The target '{name}' misses {missing} values; leave out those rows, or fill them.")
    return name


def find_inputs(dataset: Dataset, options: Tabular, target: str) -> tuple[str, ...]:
    """The columns to predict it from. Raises `NotFound` or `Invalid` where one is not there or is the target itself."""
    for name in (*(options.inputs or ()), *options.leave_out):
        dataset.feature(name)
    named = options.inputs or tuple(name for name in dataset.features if name != target)
    if target in named:
        raise Invalid(f"'{target}' is the target; it cannot be an input as well.")
    found = tuple(name for name in named if name not in options.leave_out)
    if not found:
        raise Invalid(f"No column is left to predict '{target}' from; the dataset has {', '.join(dataset.features)}.")
    return found


def column(name: str, feature: Feature) -> dict[str, Any]:
    """A column's part of the transform, by the train split alone. Raises `Invalid` for what is neither number nor category."""
    known = feature.statistics["train"]
    if feature.type in ("float", "int"):
        # a constant column is only centred; integers that are all there travel as what they are
        numbers = {"mean": known.get("mean", 0.0), "std": known.get("std") or 1.0, "indicator": known["missing"] > 0}
        datatype = "INT64" if feature.type == "int" else "FP64" if _coarse(known) else "FP32"
        return {"name": name, "datatype": datatype, **numbers}
    if feature.type != "text":
        raise Invalid(f"'{name}' is of type {feature.type}; a column is numbers or text: {_leave_out(name)}.")
    categories = known.get("values")
    if categories is None:
        raise Invalid(
            f"'{name}' is text with more than 50 different values, or one longer than 200 characters: no category. "
            f'If it is meant to be numbers, import it as such (types={{"{name}": "float"}}); otherwise {_leave_out(name)}.'
        )
    if not categories:
        raise Invalid(f"'{name}' has no value in the train split: {_leave_out(name)}.")
    missing = [""] if known["missing"] else []
    return {"name": name, "datatype": "BYTES", "categories": [*missing, *categories], "others": True}


def _spread(feature: Feature, name: str) -> tuple[float, float]:
    """Mean and deviation of a target of numbers. Raises `Invalid` where all of them are one number."""
    known = feature.statistics["train"]
    if not known["std"]:
        raise Invalid(f"The target '{name}' is {known['mean']:g} in every row of the train split; there is nothing to learn.")
    if _coarse(known):
        raise Invalid(
            f"The target '{name}' is {known['mean']:g} on average and differs by {known['std']:g} only, which float32 does not "
            f"tell apart well enough: subtract an offset first, such as {known['min']:g}."
        )
    return known["mean"], known["std"]


def _coarse(known: Mapping[str, Any]) -> bool:
    """Whether float32 rounds these numbers by more than a thousandth of their deviation, as it does seconds since 1970."""
    most = max(abs(known.get("min", 0.0)), abs(known.get("max", 0.0)))
    return bool(most * 2**-24 > 1e-3 * (known.get("std") or 1.0))


def _leave_out(name: str) -> str:
    return f'leave it out (tabular.leave_out=["{name}"])'
