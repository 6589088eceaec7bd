"""Transforms: what turns a task's public tensors into an engine's and back; the same code at training and at serving.

A transform is stored with a model version as plain JSON (`ModelCard.transform`) and rebuilt by `build`. Training and
evaluation feed it rows of a dataset, a replica feeds it calls. It knows arrays, images and tokens, never an engine or a wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modelyard.errors import Internal, Invalid
from modelyard.plugins import Registry
from modelyard.tensors import Array, Signature, TensorSpec, shown

if TYPE_CHECKING:
    from modelyard.kinds import Config


class Transform(Protocol):
    """`before` and `after` work on whole batches: dim 0 counts rows, order is kept, inputs are never changed.

    It may have `ragged`, engine input → the value that fills up: dim 1 of those may differ from call to call."""

    @property
    def config(self) -> dict[str, Any]:
        """What `build` makes this transform from; JSON, kept in `model.json`."""
        ...

    def signature(self, engine: Signature) -> Signature:
        """The public tensors of a model whose engine has signature `engine`. Raises `Invalid` where it does not take what
        `before` makes, or does not give what `after` needs."""
        ...

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Public inputs → engine inputs. Raises `Invalid` naming the row that cannot be used."""
        ...

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """Engine outputs → public outputs."""
        ...


class TransformFactory(Protocol):
    """A transform's class: `options` is its `Config`, its constructor takes one, and the version's folder, where there is
    one already, for files that the options name."""

    options: type[Config]

    def __call__(self, options: Any, folder: Path | None) -> Transform: ...


_IDENTITY = "tensor"
TRANSFORMS: Registry[TransformFactory] = Registry(
    "transform",
    {
        "image": "modelyard.data.images:ImageTransform",
        "columns": "modelyard.data.columns:ColumnsTransform",
        _IDENTITY: "modelyard.data.transforms:TensorTransform",
        "text": "modelyard.data.tokens:TextTransform",
    },
)


def build(config: Mapping[str, Any] | None, folder: Path | None = None) -> Transform:
    """The transform of a model card; None is the identity. `folder` is the version's: one with files of its own needs it.
    Raises `NotFound` (unknown name) or `Invalid` (wrong options, a file that is missing)."""
    given = dict(config or {"name": _IDENTITY})
    name = str(given.pop("name", ""))
    if name == _IDENTITY:  # most models: nothing more is loaded
        if given:
            raise Invalid(f"The options of transform '{name}' are wrong: it has none; given: {', '.join(given)}.")
        return TensorTransform()
    from pydantic import ValidationError

    factory = TRANSFORMS.get(name)
    try:
        options = factory.options.model_validate(given)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise Invalid(f"The options of transform '{name}' are wrong: {wrong}.") from error
    return factory(options, folder)


class TensorTransform:
    """The identity: callers see the engine's own tensors. It has no options."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {"name": _IDENTITY}

    def signature(self, engine: Signature) -> Signature:
        return engine

    def before(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(inputs)

    def after(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        return dict(outputs)


def needed(tensors: Mapping[str, Array], name: str) -> Array:
    """The tensor called `name`. Raises `Invalid` saying what was given instead."""
    try:
        return tensors[name]
    except KeyError:
        given = ", ".join(f"'{key}'" for key in tensors) or "none"
        raise Invalid(f"Tensor '{name}' is missing; given: {given}.") from None


def check_engine(name: str, engine: Signature, made: TensorSpec, output: str, labels: Sequence[str] | None) -> None:
    """Raises `Invalid` where an engine does not go with transform `name`: it takes another tensor than the one that is `made`,
    or its `output` is missing, no numbers or, where there are labels, not one logit a label."""
    if len(engine.inputs) != 1 or not _takes(engine.inputs[0], made):
        raise Invalid(f"The transform '{name}' makes {shown(made)}; the model takes {', '.join(map(shown, engine.inputs))}.")
    given = next((spec for spec in engine.outputs if spec.name == output), None)
    wanted = TensorSpec(output, "FP32", (-1, len(labels)) if labels else None)
    if given is None or given.datatype == "BYTES" or not _fits(given.shape, wanted.shape):
        what = f"one logit for each of {len(labels)} labels" if labels else "numbers"
        has = ", ".join(map(shown, engine.outputs))
        raise Invalid(f"The transform '{name}' wants {what} as {shown(wanted)}; the model gives {has}.")


def _takes(spec: TensorSpec, made: TensorSpec) -> bool:
    return (spec.name, spec.datatype) == (made.name, made.datatype) and _fits(spec.shape, made.shape)


def _fits(shape: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> bool:
    """Whether a tensor may have the shape wanted, whatever its number of rows."""
    if shape is None or wanted is None:
        return True
    return len(shape) == len(wanted) and all(dim in (-1, size) for dim, size in zip(shape[1:], wanted[1:], strict=True))


def softmax(logits: Array) -> Array:
    """Probabilities FP32 over the last dim, stable for large logits."""
    exponents = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), np.float32)


def classify(logits: Array, labels: Sequence[str]) -> dict[str, Array]:
    """Logits [n, classes] → `label` BYTES [n] (the most likely) and `scores` FP32 [n, classes] (softmax). Raises `Internal` for
    another number of logits: the model's fault, not its caller's."""
    if logits.ndim != 2 or logits.shape[1] != len(labels):
        raise Internal(
            f"The model answered shape {list(logits.shape)} where [n, {len(labels)}] (one logit a label) was expected."
        )
    names = np.array([label.encode() for label in labels], object)
    return {"label": names[logits.argmax(axis=1)], "scores": softmax(logits)}


def classification_outputs(labels: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The public outputs of `classify`."""
    return (TensorSpec("label", "BYTES", (-1,)), TensorSpec("scores", "FP32", (-1, len(labels))))
