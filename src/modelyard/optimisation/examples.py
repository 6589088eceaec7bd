"""From a split of a dataset to what a model is shown and what it should answer, through the version's own transform: what is
measured went the way a caller's data goes. Called by `optimise`; knows datasets and transforms, no engine's inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import build
from modelyard.engines.base import BatchEngine, ModelCard
from modelyard.errors import Invalid
from modelyard.tensors import DATATYPES, Array

Metric = Literal["accuracy", "r2"]
_CHUNK = 64
_TRAINING = "training.json"  # what training leaves beside the card: which features and target a module was trained on


@dataclass(frozen=True, slots=True)
class Examples:
    """Rows of engine inputs, and for each the wanted answer: INT64 position of the label in the dataset, or FP64 number."""

    inputs: Mapping[str, Array]
    wanted: Array


class Source:
    """The examples of one model version and dataset. Raises `Invalid` where the two do not go together."""

    def __init__(self, folder: Path, card: ModelCard, dataset: Dataset) -> None:
        trained = _trained_on(folder)
        target = trained.get("target") or dataset.target
        if target is None:
            raise Invalid("The dataset has no target: accuracy cannot be measured. Import it with one.")
        self._dataset, self._card, self._target = dataset, card, target
        self._transform = build(card.transform, folder)
        self._kind = str(self._transform.config["name"])
        if self._kind == "text":
            raise Invalid(
                "The model makes embeddings of texts: there is no accuracy to measure, so nothing to optimise within."
            )
        self._labels = dataset.feature(target).names
        self._features = tuple(trained.get("inputs") or self._feature_names())
        self.metric: Metric = "accuracy" if self._labels else "r2"

    def examples(self, split: str, most: int | None = None, seed: int = 0) -> Examples:
        """A split, or `most` rows of it drawn by `seed`, kept in order. Raises `Invalid` where the split is empty."""
        columns = self._dataset.columns(split, [*self._features, self._target])
        wanted = columns.pop(self._target)
        if not len(wanted):
            raise Invalid(f"The split '{split}' of the dataset is empty: optimising needs calibrate, select and report.")
        if most is not None and most < len(wanted):
            kept = np.sort(np.random.default_rng(seed).choice(len(wanted), most, replace=False))
            columns, wanted = {name: array[kept] for name, array in columns.items()}, wanted[kept]
        return Examples(self._engine_inputs(columns), wanted if self._labels else wanted.astype(np.float64))

    def predict(self, engine: BatchEngine, inputs: Mapping[str, Array]) -> Array:
        """One prediction a row, in the form of `Examples.wanted`; rows go through in bounded batches."""
        rows = len(next(iter(inputs.values())))
        parts = [engine.forward({k: v[i : i + _CHUNK] for k, v in inputs.items()}) for i in range(0, rows, _CHUNK)]
        return np.concatenate([self._answers(self._transform.after(part)) for part in parts])

    def _feature_names(self) -> list[str]:
        """What the transform reads: the one image, its named columns, or all numbers in the dataset's order."""
        if self._kind == "image":
            return self._dataset.of_type("image")[:1] or _refuse("an image", self._dataset)
        if self._kind == "columns":
            return [column["name"] for column in self._transform.config["columns"]]
        return self._dataset.of_type("float", "int") or _refuse("columns of numbers", self._dataset)

    def _engine_inputs(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        if self._kind == "image":
            return self._transform.before({"image": columns[self._features[0]]})
        if self._kind == "columns":
            return self._transform.before(columns)
        spec = self._card.inputs[0]
        matrix = np.stack([columns[name] for name in self._features], axis=1).astype(DATATYPES[spec.datatype])
        if len(self._card.inputs) != 1 or (spec.shape is not None and spec.shape[1:] not in ((-1,), matrix.shape[1:])):
            takes = ", ".join(f"{s.name}{list(s.shape or ())}" for s in self._card.inputs)
            gives = f"one matrix of {matrix.shape[1]} columns ({', '.join(self._features)})"
            raise Invalid(f"The model takes {takes}; the dataset gives {gives}.")
        return {spec.name: matrix}

    def _answers(self, outputs: Mapping[str, Array]) -> Array:
        """Public outputs → predictions. A plain tensor is a row of logits for labels, a number otherwise."""
        if self._kind != "tensor":
            return self._positions(outputs["label"]) if self._labels else outputs["prediction"].astype(np.float64)
        values = outputs[self._card.outputs[0].name]
        if self._labels is None:
            if values.size != len(values):
                raise Invalid(f"The model answers {list(values.shape[1:])} numbers a row; '{self._target}' is one number.")
            return values.reshape(-1).astype(np.float64)
        order = values.reshape(len(values), -1).argmax(axis=1)
        return self._positions(np.array(self._card.labels, object)[order]) if self._card.labels else order

    def _positions(self, labels: Array) -> Array:
        """Names of labels → their positions in the dataset; -1, never right, for one that it does not have."""
        known = {name: position for position, name in enumerate(self._labels or ())}
        return np.array([known.get(v.decode() if isinstance(v, bytes) else str(v), -1) for v in labels], np.int64)


def _trained_on(folder: Path) -> dict[str, Any]:
    """The columns that the config of a version's training names; none where it was not trained on columns of its choice."""
    path = folder / _TRAINING
    config = json.loads(path.read_bytes()).get("config", {}) if path.is_file() else {}
    recipe = str(config.get("recipe"))
    named = {"module": ("inputs", "target"), "tabular": ("target",)}.get(recipe, ())
    given = config.get(recipe) or {}
    return {name: given.get(name) for name in named}


def _refuse(what: str, dataset: Dataset) -> list[str]:
    there = {name: feature.type for name, feature in dataset.features.items()}
    raise Invalid(f"The model takes {what}; the dataset has {there}.")
