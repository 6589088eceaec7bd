"""Recipe `module`: a user's own `nn.Module`, trained from the file it is written in, unchanged.

The class knows nothing of the platform: its forward takes one tensor (the input's name is the parameter's) and returns one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import Transform, build
from modelyard.engines.base import ModuleCard
from modelyard.engines.files import inside
from modelyard.engines.torch import build_module
from modelyard.errors import Invalid, NotFound
from modelyard.tensors import Array
from modelyard.training.config import Module, TrainConfig
from modelyard.training.recipes import Plan
from modelyard.training.recipes.image_classifier import image_input, image_transform
from modelyard.training.split import Split

_DTYPES = {"float32": np.float32, "float64": np.float64}


def module(config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan:
    """Raises `Invalid` or `NotFound` where the code, the config and the dataset do not go together."""
    options = config.module
    if options is None or code is None:
        raise Invalid("Recipe 'module' needs your code: give the input 'code', a folder with model.py, and the part 'module'.")
    if not (code / options.file).is_file():
        there = ", ".join(sorted(path.name for path in code.iterdir())) or "nothing"
        raise NotFound(f"No '{options.file}' in the code that was given; there is {there}.")
    card = ModuleCard(file="model.py", name=options.name, arguments=options.arguments)
    network = build_module(code, card.changed(file=options.file))
    target, labels = find_target(dataset, options)
    names = {"input": input_name(network), "output": "logits" if labels else "output"}
    transform, before = find_input(config, options, dataset, labels, names)
    return Plan(
        network=network,
        module=card,
        source=inside(code, options.file),
        weights=options.weights,
        task=options.task or _task(transform, labels),
        transform=transform,
        features=options.inputs,
        before=before,
        target=target,
        labels=labels,
        loss=cross_entropy if labels else mse_loss,
        input=names["input"],
        output=names["output"],
        split=Split.of(network),
    )


def input_name(network: nn.Module) -> str:
    """The name of forward's one parameter. Raises `Invalid` where it needs another number of them."""
    parameters = inspect.signature(network.forward).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(needed) != 1:
        raise Invalid(f"forward of {type(network).__name__} takes ({', '.join(needed)}); recipe 'module' feeds one tensor.")
    return needed[0]


def find_target(dataset: Dataset, options: Module) -> tuple[str, tuple[str, ...] | None]:
    """The feature to predict and, for cross-entropy, its labels. Raises `Invalid` where loss and target do not match."""
    name = options.target or dataset.target
    if name is None:
        raise Invalid(f"The dataset has no target; name one in module.target: {', '.join(dataset.features)}.")
    feature = dataset.feature(name)
    if options.loss == "cross-entropy" and feature.names is None:
        raise Invalid(f"cross-entropy needs a target of classes; '{name}' is of type {feature.type}: use mse.")
    if options.loss == "mse" and feature.type not in ("float", "int"):
        raise Invalid(f"mse needs a target of numbers; '{name}' is of type {feature.type}: use cross-entropy.")
    return name, feature.names


def find_input(
    config: TrainConfig, options: Module, dataset: Dataset, labels: tuple[str, ...] | None, names: Mapping[str, str]
) -> tuple[Transform, Callable[[Mapping[str, Array]], Array]]:
    """The transform callers meet, and how the named features become the network's input."""
    types = {name: dataset.feature(name).type for name in options.inputs}
    if "image" in types.values():
        if len(types) != 1 or labels is None:
            raise Invalid("An image is a network's only input and needs the loss cross-entropy.")
        image = image_transform(dataset, options.inputs[0], labels, names["input"], names["output"])
        return image, image_input(image, options.inputs[0])
    if options.transform == "columns":
        columns = [_column(dataset, name) for name in options.inputs]
        table = build({"name": "columns", "columns": columns, "labels": labels, **names})
        return table, lambda rows: table.before(rows)[names["input"]]
    wrong = {name: kind for name, kind in types.items() if kind not in ("float", "int")}
    if wrong:
        raise Invalid(f"Transform 'tensor' takes columns of numbers; {wrong} are not: use the transform 'columns'.")
    _complete(dataset, options.inputs)
    dtype = _DTYPES[config.dtype]
    return build(None), lambda rows: np.stack([rows[name] for name in options.inputs], axis=1).astype(dtype)


def _column(dataset: Dataset, name: str) -> dict[str, Any]:
    """A column's part of the `columns` transform: statistics of the train split, categories of all splits."""
    feature = dataset.feature(name)
    if feature.type in ("float", "int"):
        known = feature.statistics["train"]
        # every number travels as FP32 or, where integers are meant, INT64; a constant column is only centred
        datatype = "INT64" if feature.type == "int" else "FP32"
        return {"name": name, "datatype": datatype, "mean": known.get("mean", 0.0), "std": known.get("std") or 1.0}
    values = [known.get("values") for known in feature.statistics.values()]
    if feature.type != "text" or any(part is None for part in values):
        raise Invalid(
            f"'{name}' ({feature.type}) cannot be an input column: a text column may have at most 50 different values."
        )
    return {"name": name, "datatype": "BYTES", "categories": sorted({value for part in values for value in part or ()})}


def _complete(dataset: Dataset, names: tuple[str, ...]) -> None:
    for name in names:
        missing = sum(known["missing"] for known in dataset.features[name].statistics.values())
        if missing:
            raise Invalid(
                f"Column '{name}' misses {missing} values; fill them, or use transform 'columns', which takes their mean."
            )


def _task(transform: Transform, labels: tuple[str, ...] | None) -> str:
    if transform.config["name"] == "image":
        return "image-classification"
    return "tabular-classification" if labels else "tabular-regression"
