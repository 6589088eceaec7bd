"""From a trained network to a model version: weights, the code they belong to, `model.json`, a card for people.

Called by `loop.run` in rank 0. The artefact holds no time and no process id: the same job gives the same bytes.
"""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import nn

import modelyard
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.files import inside
from modelyard.engines.torch import fill, read_weights
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.training.checkpoint import Progress
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import Plan

_DATATYPES = {"float32": "FP32", "float64": "FP64"}
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """What there is to publish. `shapes`: of the network's input and output, the batch -1."""

    config: TrainConfig
    plan: Plan
    progress: Progress
    shapes: tuple[Shape, Shape]
    ranks: int


def publish(trained: Trained, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Write the model's folder into `context.work` and hand it over as the output 'model'."""
    plan, folder = trained.plan, context.work / "model"
    folder.mkdir()
    shutil.copyfile(plan.source, folder / plan.module.file)
    save_weights(plan.network, folder / plan.weights)
    model_card(trained).save(folder)
    dataset = {"reference": inputs["dataset"].reference, "hash": inputs["dataset"].view.hash}
    about = {
        "metrics": split_metrics(trained.progress.curve[-1]),
        "parameters": sum(parameter.numel() for parameter in plan.network.parameters()),
        "dataset": dataset,
        "recipe": trained.config.recipe,
    }
    (folder / "training.json").write_text(json.dumps({**about, **environment(trained)}, indent=1, sort_keys=True) + "\n")
    (folder / "README.md").write_text(readme(plan, about))
    metadata = {**about, "engines": ["torch"], "curve": trained.progress.curve, "labels": list(plan.labels or ()) or None}
    outputs.publish("model", folder, task=plan.task, metadata=metadata)


def save_weights(network: nn.Module, path: Path) -> None:
    """A plain state_dict, by the file's ending as safetensors or as torch.save writes it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
        path.chmod(0o644)  # safetensors writes for the owner alone
    else:
        torch.save(state, path)


def load_weights(network: nn.Module, folder: Path) -> None:
    """Start from another version's weights. Raises `Invalid` where that is no torch model or its weights do not fit."""
    card = ModelCard.load(folder)
    if "weights" not in card.files:
        raise Invalid(f"The model to continue from has no weights for torch; its files are {', '.join(card.files)}.")
    fill(network, read_weights(inside(folder, card.files["weights"])))


def model_card(trained: Trained) -> ModelCard:
    plan, datatype = trained.plan, _DATATYPES[trained.config.dtype]
    taken, given = trained.shapes
    return ModelCard(
        task=plan.task,
        engines=("torch",),
        files={"weights": plan.weights},
        inputs=(TensorCard(name=plan.input, datatype=datatype, shape=taken),),
        outputs=(TensorCard(name=plan.output, datatype=datatype, shape=given),),
        module=plan.module,
        transform=plan.transform.config,
        labels=plan.labels,
    )


def split_metrics(last: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The metrics of the last epoch by split."""
    select = {name.removeprefix("select_"): value for name, value in last.items() if name.startswith("select_")}
    return {"train": {name: last[name] for name in select if name in last}, "select": select}


def environment(trained: Trained) -> dict[str, Any]:
    """What it takes to train the same weights again."""
    versions = {
        "modelyard": modelyard.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "machine": platform.machine(),
    }
    return {
        "config": trained.config.model_dump(mode="json", exclude_none=True),
        "ranks": trained.ranks,
        "samples": trained.progress.seen,
        "versions": {name: str(version) for name, version in versions.items()},
    }


def readme(plan: Plan, about: Mapping[str, Any]) -> str:
    """A model card as the Hugging Face hub reads it. Its front matter is YAML with JSON values."""
    name, dataset, select = plan.module.name, about["dataset"]["reference"], about["metrics"]["select"]
    index = [
        {
            "name": name,
            "results": [
                {
                    "task": {"type": plan.task},
                    "dataset": {"name": dataset, "type": dataset, "split": "select"},
                    "metrics": [{"type": metric, "value": value} for metric, value in select.items()],
                }
            ],
        }
    ]
    front = {
        "pipeline_tag": plan.task,
        "library_name": "pytorch",
        "datasets": [dataset],
        "metrics": list(select),
        "model-index": index,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items()]
    figures = "\n".join(
        f"| {split} | {metric} | {value:.4f} |" for split, m in about["metrics"].items() for metric, value in m.items()
    )
    load = (
        f'from safetensors.torch import load_file\nweights = load_file("{plan.weights}")'
        if plan.weights.endswith(".safetensors")
        else f'import torch\nweights = torch.load("{plan.weights}", weights_only=True)'
    )
    arguments = ", ".join(f"{key}={value!r}" for key, value in plan.module.arguments.items())
    return _README.format(
        front="\n".join(lines), name=name, task=plan.task, dataset=dataset, recipe=about["recipe"],
        parameters=about["parameters"], figures=figures, load=load, arguments=arguments,
    )  # fmt: skip


_README = """---
{front}
---
# {name}

{task}, trained on `{dataset}` with the recipe `{recipe}`; {parameters:,} parameters. `training.json` has the config, the seed
and the versions it was trained with, `model.json` its tensors and its transform.

| split | metric | value |
|---|---|---|
{figures}

```python
from model import {name}
{load}
model = {name}({arguments})
model.load_state_dict(weights)
model.eval()
```
"""
