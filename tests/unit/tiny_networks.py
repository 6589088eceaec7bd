"""Torch networks small enough to be pruned and trained in a test, as the versions that training leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_datasets import COLUMNS, write

from modelyard.data.datasets import Dataset, Feature
from modelyard.engines.base import ModelCard, ModuleCard, TensorCard
from modelyard.engines.torch import TorchEngine, build_module
from modelyard.kinds import FolderContext
from modelyard.optimisation.examples import Source
from modelyard.optimisation.steps.learn import Learning
from modelyard.optimisation.variants import Subject

MIXER = '''\
import torch
from torch import nn

PARALLEL = {
    "tensor": {"blocks.*.q": "columns", "blocks.*.k": "columns", "blocks.*.v": "columns", "blocks.*.o": "rows"},
    "heads": {"blocks.*": ["heads"]},
}


class Block(nn.Module):
    """Attention of `heads` over four pieces of a row, and a shortcut around it."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        n, pieces, _ = x.shape
        q, k, v = (part(x).view(n, pieces, self.heads, -1).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, dim=-1) @ v
        return x + self.o(mixed.transpose(1, 2).reshape(n, pieces, -1))


class Mixer(nn.Module):
    """columns [n, 10] → logits [n, classes]."""

    def __init__(self, width=16, heads=4, blocks=2, classes=3):
        super().__init__()
        self.place = nn.Parameter(torch.randn(4, width))
        self.embed = nn.Linear(10, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.wide = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, columns):
        x = self.embed(columns).unsqueeze(1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(torch.relu(self.wide(x)).mean(dim=1))
'''
LABELS = ("low", "middle", "high")


def classes(folder: Path, rows: int = 240, shared: int = 0) -> Dataset:
    """Ten columns of normal numbers; the class is where the sum of three of them lies. `shared`: so many rows of select, and as
    many of report, are those that train begins and ends with."""
    random, splits = np.random.default_rng(0), {}
    for name, count in {"train": rows, "calibrate": 40, "select": 120, "report": 120}.items():
        matrix = random.standard_normal((count, len(COLUMNS)))
        wanted = np.digitize(matrix[:, :3].sum(axis=1), [-0.8, 0.8])
        splits[name] = {**{c: matrix[:, i].tolist() for i, c in enumerate(COLUMNS)}, "target": wanted.tolist()}
    for name, some in (("select", slice(0, shared)), ("report", slice(rows - shared, rows))):
        for column, values in splits[name].items():
            values[:shared] = splits["train"][column][some]
    features = {**{c: Feature(type="float") for c in COLUMNS}, "target": Feature(type="label", names=LABELS)}
    return write(folder, features, splits, "target")


def mixer(folder: Path, *, labels: tuple[str, ...] | None = LABELS, **arguments: Any) -> ModelCard:
    """`folder` becomes a version of Mixer that has learned nothing yet."""
    folder.mkdir(exist_ok=True)
    (folder / "model.py").write_text(MIXER)
    module = ModuleCard(file="model.py", name="Mixer", arguments={"width": 16, **arguments})
    torch.manual_seed(3)
    torch.save(build_module(folder, module).state_dict(), folder / "model.pth")
    trained = {"recipe": "module", "batch_size": 24, "lr": 0.01, "module": {"inputs": list(COLUMNS), "target": "target"}}
    (folder / "training.json").write_text(json.dumps({"config": trained}))
    card = ModelCard(
        task="tabular-classification",
        engines=("torch",),
        files={"weights": "model.pth"},
        module=module,
        inputs=(TensorCard(name="columns", datatype="FP32", shape=(-1, 10)),),
        outputs=(TensorCard(name="logits", datatype="FP32", shape=(-1, len(LABELS))),),
        labels=labels,
    )
    card.save(folder)
    return card


def subject(root: Path, data: Dataset | None = None, **more: Any) -> Subject:
    """The version and its data as `optimise` reads them."""
    card = mixer(root / "version", **more)
    source = Source(root / "version", card, data or classes(root / "data"))
    return Subject(root / "version", card, TorchEngine(root / "version", card), source, source.examples("select"))


def context(root: Path) -> FolderContext:
    (root / "work").mkdir(exist_ok=True)
    return FolderContext(root / "work")


def learning(found: Subject, root: Path, *, seed: int = 0, total: int = 1) -> Learning:
    return Learning.of(found.folder, found.card, found.source, context(root), seed=seed, total=total)
