from __future__ import annotations

import pytest

from modelyard.conversion.cards import complete, describe, infer_task
from modelyard.conversion.config import ImportModelConfig
from modelyard.errors import Invalid
from modelyard.tensors import Signature, TensorSpec

IMAGES = Signature((TensorSpec("data", "FP32", (-1, 1, 8, 8)),), (TensorSpec("out", "FP32", (-1, 2)),))
ROWS = Signature((TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 1)),))
UNKNOWN = Signature((TensorSpec("x", "FP32", None),), (TensorSpec("y", "FP32", None),))
IMAGE = {"name": "image", "height": 8, "width": 8, "channels": 1}


@pytest.mark.parametrize(
    ("signature", "labels", "transform", "task"),
    [
        (ROWS, None, None, "tabular-regression"),
        (ROWS, ("a", "b"), None, "tabular-classification"),
        (IMAGES, None, None, "feature-extraction"),
        (IMAGES, ("a", "b"), {"name": "image"}, "image-classification"),
        (IMAGES, None, {"name": "image", "labels": ["a"]}, "image-classification"),
        (UNKNOWN, None, None, "feature-extraction"),
    ],
)
def test_a_task_nobody_named(signature: Signature, labels: tuple[str, ...], transform: dict, task: str) -> None:
    assert infer_task(signature, labels, transform) == task


def test_a_task_that_was_named_stays() -> None:
    card = describe(ImportModelConfig(task="image-classification"), ROWS, engines=("onnx",), files={})
    assert card.task == "image-classification"
    assert card.signature == ROWS


def test_a_transform_takes_the_models_tensors_and_labels() -> None:
    made = complete(ImportModelConfig(transform=IMAGE, labels=("a", "b")), IMAGES)
    assert made is not None
    assert (made["input"], made["output"], list(made["labels"])) == ("data", "out", ["a", "b"])
    assert complete(ImportModelConfig(), IMAGES) is None
    assert complete(ImportModelConfig(transform={"name": "tensor"}), IMAGES) == {"name": "tensor"}


def test_a_transform_of_other_tensors_is_refused() -> None:
    with pytest.raises(Invalid, match="input is 'pixels'; the model's are data"):
        complete(ImportModelConfig(transform={**IMAGE, "input": "pixels"}, labels=("a", "b")), IMAGES)
    with pytest.raises(Invalid, match="'image' are wrong"):
        complete(ImportModelConfig(transform={**IMAGE, "height": 0}, labels=("a", "b")), IMAGES)
