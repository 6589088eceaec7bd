"""Recipe `transformers`: a model of Hugging Face learns to tell classes of texts or of images apart, whole or by LoRA.

The dataset says which: one text or one image feature, and labels. The base is a classifier, or a model that gets a new head;
where its classes are as many as the dataset's, its head goes on learning.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from modelyard.data.datasets import Dataset
from modelyard.data.transforms import Transform, build
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.huggingface import open_tokenizer
from modelyard.errors import Invalid
from modelyard.tensors import Array
from modelyard.training.config import TrainConfig
from modelyard.training.recipes import Plan, lora
from modelyard.training.recipes.finetuning import Tuning, Wrapped
from modelyard.training.recipes.image_classifier import image_input
from modelyard.training.recipes.pretrained import check_folder
from modelyard.training.recipes.splits import split_of

PROCESSOR = "preprocessor_config.json"
_AT_ONCE = 256  # texts that the tokenizer is given together


def transformers(config: TrainConfig, dataset: Dataset, code: Path | None) -> Plan:
    """Raises `Invalid` where the base, the data and the config do not go together. `code` is the base's folder."""
    folder = check_folder(code, config.recipe)
    column, images = find_column(dataset, config.transformers.column)
    labels = dataset.labels or ()
    task, kind = (
        ("image-classification", "AutoModelForImageClassification")
        if images
        else ("text-classification", "AutoModelForSequenceClassification")
    )
    transform = image_transform(folder, labels) if images else build(None)
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}
    head = {**names, "ignore_mismatched_sizes": True}
    peft = None if images else "SEQ_CLS"
    tuning = Tuning(folder, kind, peft, config.lora, head, card_of(folder, task, labels))
    model = tuning.network()
    return Plan(
        network=Wrapped(model, see if images else read_text),
        weights="model.safetensors",
        task=task,
        transform=transform,
        features=(column,),
        before=image_input(transform, column) if images else None,
        read=None if images else reader(open_tokenizer(folder), column, config.transformers.length),
        input="pixel_values" if images else "input_ids",
        output="logits",
        target=str(dataset.target),
        labels=labels,
        loss=cross_entropy,
        load=lambda other: lora.load_adapter(model, other),
        write=tuning.write,
        fixed=True,
        split=split_of(model, "model"),
    )


def see(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(pixel_values=pixels).logits
    return logits


def read_text(model: Any, texts: torch.Tensor) -> torch.Tensor:
    """Texts [n, 2, length], tokens and which of them are there → logits [n, classes]."""
    tokens, there = texts.long().unbind(1)
    logits: torch.Tensor = model(input_ids=tokens, attention_mask=there).logits
    return logits


def reader(tokenizer: Any, column: str, length: int) -> Callable[[Dataset, str, Callable[[], None]], tuple[Array, Array]]:
    """A split's texts, cut at `length` tokens and filled up to the longest of them."""

    def read(dataset: Dataset, split: str, check: Callable[[], None]) -> tuple[Array, Array]:
        columns = dataset.columns(split, [column, str(dataset.target)])
        texts, found = list(columns[column]), []
        for at in range(0, len(texts), _AT_ONCE):
            check()
            found += tokenizer(texts[at : at + _AT_ONCE], truncation=True, max_length=length)["input_ids"]
        inputs = np.zeros((len(found), 2, max(1, *map(len, found))), np.int32)
        inputs[:, 0] = tokenizer.pad_token_id or 0
        for row, tokens in enumerate(found):
            inputs[row, 0, : len(tokens)] = tokens
            inputs[row, 1, : len(tokens)] = 1
        return inputs, columns[str(dataset.target)]

    return read


def find_column(dataset: Dataset, asked: str | None) -> tuple[str, bool]:
    """The text or image column, and whether it is one of images."""
    found = [asked] if asked else [*dataset.of_type("text"), *dataset.of_type("image")]
    kinds = {name: feature.type for name, feature in dataset.features.items()}
    if len(found) != 1 or dataset.feature(found[0]).type not in ("text", "image") or dataset.labels is None:
        raise Invalid(
            f"Recipe 'transformers' needs one text or image column (transformers.column) and labels; there is {kinds}."
        )
    return found[0], dataset.feature(found[0]).type == "image"


def image_transform(folder: Path, labels: tuple[str, ...]) -> Transform:
    """What preprocessor_config.json asks for: a size, a mean and a standard deviation."""
    try:
        said = json.loads((folder / PROCESSOR).read_bytes())
        size = said["size"] if isinstance(said["size"], dict) else {"shortest_edge": said["size"]}
        height, width = (size.get(side) or size["shortest_edge"] for side in ("height", "width"))
        mean, std = said["image_mean"], said["image_std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Invalid(f"The base's {PROCESSOR} does not say size, image_mean and image_std: {error}.") from error
    options = {"height": height, "width": width, "channels": len(mean), "mean": mean, "std": std, "labels": labels}
    return build({"name": "image", **options, "input": "pixel_values", "output": "logits"})


def card_of(folder: Path, task: str, labels: tuple[str, ...]) -> ModelCard:
    """The base's card for these classes: as transformers runs it, for what else served the base knows no such head."""
    base = ModelCard.load(folder)
    given = (TensorCard(name="logits", datatype="FP32", shape=(-1, len(labels))),)
    files = {role: path for role, path in base.files.items() if role != "onnx"}
    own = {"engines": ("transformers",), "files": files, "transform": None, "inputs": base.inputs[:1]}
    return base.changed(**own, task=task, labels=labels, outputs=given)
