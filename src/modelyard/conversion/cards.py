"""What an imported model says of itself in `model.json` where its owner said little: the task and the transform's tensors.
Pure functions, called by the importers of each format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.conversion.config import ImportModelConfig
from modelyard.data.transforms import build
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec


def describe(config: ImportModelConfig, signature: Signature, **facts: Any) -> ModelCard:
    """The card of a model with these tensors; `facts` are its engines, files and module."""
    inputs, outputs = tensor_cards(signature.inputs), tensor_cards(signature.outputs)
    transform = complete(config, signature)
    task = config.task or infer_task(signature, config.labels, transform)
    return ModelCard(task=task, inputs=inputs, outputs=outputs, transform=transform, labels=config.labels, **facts)


def tensor_cards(specs: tuple[TensorSpec, ...]) -> tuple[TensorCard, ...]:
    return tuple(TensorCard(name=s.name, datatype=s.datatype, shape=s.shape) for s in specs)


def infer_task(signature: Signature, labels: tuple[str, ...] | None, transform: Mapping[str, Any] | None) -> str:
    """The task of a model whose owner named none: classification where it has labels, of images where its transform says so;
    numbers in rows are tabular-regression; anything else is tensors in, tensors out: feature-extraction."""
    given = transform or {}
    if labels or given.get("labels"):
        return "image-classification" if given.get("name") == "image" else "tabular-classification"
    rows = all(s.shape is not None and len(s.shape) <= 2 and s.datatype.startswith(("FP", "INT")) for s in signature.inputs)
    return "tabular-regression" if rows else "feature-extraction"


def complete(config: ImportModelConfig, signature: Signature) -> dict[str, Any] | None:
    """The transform asked for, or None. Where it names no engine tensors they are the model's first ones; its labels are the
    model's. Raises `Invalid` where it names others, its options are wrong, or the model's tensors are not what it needs; and
    where a classifier's labels are not as many as its first output has columns."""
    given = dict(config.transform or {})
    if given.get("name") == "text":
        raise Invalid("The transform 'text' comes with a Hugging Face folder, which has the tokenizer: import that.")
    if not given or given.get("name") == "tensor":
        _check_labels(config, signature.outputs[0])
        return build(given).config if given else None
    if config.labels:
        given.setdefault("labels", list(config.labels))
    for key, specs in (("input", signature.inputs), ("output", signature.outputs)):
        given.setdefault(key, specs[0].name)
        if given[key] not in {spec.name for spec in specs}:
            raise Invalid(f"The transform's {key} is '{given[key]}'; the model's are {', '.join(s.name for s in specs)}.")
    transform = build(given)
    transform.signature(signature)
    return transform.config


def _check_labels(config: ImportModelConfig, output: TensorSpec) -> None:
    """Scores are rows of floats; what has another form is not known to be scores."""
    shape, labels = output.shape, config.labels
    if not labels or not (config.task or "classification").endswith("classification"):
        return
    if output.datatype.startswith("FP") and shape and len(shape) == 2 and shape[1] not in (-1, len(labels)):
        raise Invalid(
            f"There are {len(labels)} labels ({', '.join(labels[:5])}), but the model's output '{output.name}' has {shape[1]} "
            "columns; expected one a label, in their order."
        )
