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
from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.files import inside
from modelyard.engines.torch import fill, read_weights
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.training.checkpoint import Progress
from modelyard.training.config import TrainConfig
from modelyard.training.mesh import Mesh
from modelyard.training.recipes import Made, Plan

_DATATYPES = {"float32": "FP32", "float64": "FP64"}
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """What there is to publish. `shapes`: of the network's input and output, the batch -1; `state`: the whole state_dict;
    `parameters`: how many."""

    config: TrainConfig
    plan: Plan
    progress: Progress
    shapes: tuple[Shape, Shape]
    mesh: Mesh
    state: Mapping[str, torch.Tensor]
    parameters: int


def publish(trained: Trained, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Write what was trained into `context.work` and hand it over: the output 'model', or what the recipe writes itself."""
    plan = trained.plan
    about = {
        "metrics": split_metrics(trained.progress.curve[-1]),
        "parameters": trained.parameters,
        "recipe": trained.config.recipe,
        **{role: _source(inputs[role]) for role in ("dataset", "base") if role in inputs},
    }
    record = json.dumps({**about, **environment(trained)}, indent=1, sort_keys=True) + "\n"
    more = {"curve": trained.progress.curve, "labels": list(plan.labels or ()) or None}
    for made in plan.write(trained.state, inputs, context.work) if plan.write else [module(trained, context.work / "model")]:
        made.card.save(made.folder)
        (made.folder / "training.json").write_text(record)
        (made.folder / "README.md").write_text(readme(made, about))
        metadata = {**about, "engines": list(made.card.engines), **more}
        outputs.publish(made.name, made.folder, task=made.card.task, metadata=metadata)


def module(trained: Trained, folder: Path) -> Made:
    """The network as the file it is written in and its weights, in the new `folder`."""
    plan = trained.plan
    if plan.source is None or plan.module is None:
        raise TypeError("A plan without 'write' says by 'module' and 'source' how its network is built again.")
    folder.mkdir()
    shutil.copyfile(plan.source, folder / plan.module.file)
    save_weights(trained.state, folder / plan.weights)
    return Made("model", folder, model_card(trained), "", by_hand(plan.module, plan.weights), title=plan.module.name)


def _source(given: Input) -> dict[str, str]:
    return {"reference": given.reference, "hash": given.view.hash}


def save_weights(network: Mapping[str, torch.Tensor], path: Path) -> None:
    """A plain state_dict, by the file's ending as safetensors or as torch.save writes it."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.items()}
    held: set[int] = set()
    for name, tensor in state.items() if path.suffix == ".safetensors" else ():
        if tensor.untyped_storage().data_ptr() in held:  # one parameter of two names, which that format takes twice
            state[name] = tensor.clone()
        held.add(tensor.untyped_storage().data_ptr())
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
        "ranks": trained.mesh.ranks,
        "mesh": str(trained.mesh),
        "samples": trained.progress.seen,
        "versions": {name: str(version) for name, version in versions.items()},
    }


def by_hand(card: ModuleCard, weights: str) -> str:
    """The lines that make the trained module again, in plain PyTorch."""
    safe = weights.endswith(".safetensors")
    load = f'load_file("{weights}")' if safe else f'torch.load("{weights}", weights_only=True)'
    arguments = ", ".join(f"{key}={value!r}" for key, value in card.arguments.items())
    lines = [f"from model import {card.name}", "from safetensors.torch import load_file" if safe else "import torch"]
    return "\n".join([*lines, f"weights = {load}", f"model = {card.name}({arguments})", *_FILL])


def readme(made: Made, about: Mapping[str, Any]) -> str:
    """A model card as the Hugging Face hub reads it. Its front matter is YAML with JSON values."""
    task, dataset, select = made.card.task, about["dataset"]["reference"], about["metrics"]["select"]
    title = made.title or about["base"]["reference"]
    index = [
        {
            "name": title,
            "results": [
                {
                    "task": {"type": task},
                    "dataset": {"name": dataset, "type": dataset, "split": "select"},
                    "metrics": [{"type": metric, "value": value} for metric, value in select.items()],
                }
            ],
        }
    ]
    front = {"pipeline_tag": task, "library_name": made.library, "datasets": [dataset], "metrics": list(select)}
    front |= {"base_model": about["base"]["reference"]} if "base" in about else {}
    lines = [f"{key}: {json.dumps(value)}" for key, value in {**front, "model-index": index}.items()]
    figures = "\n".join(
        f"| {split} | {metric} | {value:.4f} |" for split, m in about["metrics"].items() for metric, value in m.items()
    )
    return _README.format(
        front="\n".join(lines), title=title, task=task, dataset=dataset, recipe=about["recipe"], about=made.about,
        parameters=about["parameters"], figures=figures, code=made.code.strip(),
    )  # fmt: skip


_FILL = ("model.load_state_dict(weights)", "model.eval()")
_README = """---
{front}
---
# {title}

{task}, trained on `{dataset}` with the recipe `{recipe}`; {parameters:,} parameters. {about}`training.json` has the config, the
seed and the versions it was trained with, `model.json` its tensors and its transform.

| split | metric | value |
|---|---|---|
{figures}

```python
{code}
```
"""
