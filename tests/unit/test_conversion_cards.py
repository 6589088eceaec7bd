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


def images(
    shape: tuple[int, ...] | None = (-1, 1, 8, 8), datatype: str = "FP32", out: tuple[int, ...] | None = (-1, 2)
) -> Signature:
    return Signature((TensorSpec("data", datatype, shape),), (TensorSpec("out", "FP32", out),))


@pytest.mark.parametrize(
    ("signature", "said"),
    [
        (images(datatype="UINT8"), r"'image' makes data:FP32\[-1, 1, 8, 8\]; the model takes data:UINT8\[-1, 1, 8, 8\]"),
        (images((-1, 8, 8, 1)), r"'image' makes data:FP32\[-1, 1, 8, 8\]; the model takes data:FP32\[-1, 8, 8, 1\]"),
        (images((-1, 64)), r"the model takes data:FP32\[-1, 64\]"),
        (images(out=(-1, 10)), r"one logit for each of 2 labels as out:FP32\[-1, 2\]; the model gives out:FP32\[-1, 10\]"),
        (images(out=(-1,)), r"the model gives out:FP32\[-1\]"),
        (images(out=(-1, 2, 1)), r"the model gives out:FP32\[-1, 2, 1\]"),
    ],
)
def test_a_transform_that_the_tensors_do_not_go_with_is_refused(signature: Signature, said: str) -> None:
    with pytest.raises(Invalid, match=said):
        complete(ImportModelConfig(transform=IMAGE, labels=("a", "b")), signature)


@pytest.mark.parametrize("signature", [images(None, out=None), images((4, 1, -1, -1), out=(4, -1)), images((-1, 1, 8, 8))])
def test_dims_that_are_open_take_any_transform(signature: Signature) -> None:
    assert complete(ImportModelConfig(transform=IMAGE, labels=("a", "b")), signature)


def test_columns_are_as_many_as_the_model_takes() -> None:
    transform = {"name": "columns", "columns": [{"name": name} for name in "abc"]}
    with pytest.raises(Invalid, match=r"'columns' makes x:FP32\[-1, 3\]; the model takes x:FP32\[-1, 4\]"):
        complete(ImportModelConfig(transform=transform), ROWS)
    named = Signature(ROWS.inputs, (TensorSpec("label", "BYTES", (-1,)), *ROWS.outputs))
    transform["columns"].append({"name": "d"})  # type: ignore[attr-defined]
    assert complete(ImportModelConfig(transform={**transform, "output": "y"}), named)
    with pytest.raises(Invalid, match=r"wants numbers as label:FP32; the model gives label:BYTES\[-1\], y:FP32"):
        complete(ImportModelConfig(transform=transform), named)


@pytest.mark.parametrize("transform", [None, {"name": "tensor"}])
def test_labels_are_as_many_as_the_columns_of_the_scores(transform: dict | None) -> None:
    with pytest.raises(Invalid, match=r"There are 3 labels \(a, b, c\), but the model's output 'out' has 2 columns"):
        complete(ImportModelConfig(transform=transform, labels=("a", "b", "c")), IMAGES)
    complete(ImportModelConfig(transform=transform, labels=("a", "b")), IMAGES)
    for out in ((-1, -1), (-1,), (-1, 2, 5), None):
        complete(ImportModelConfig(transform=transform, labels=("a", "b", "c")), images(out=out))
    complete(ImportModelConfig(transform=transform, labels=("a", "b", "c"), task="object-detection"), IMAGES)
