"""Variants of an image classifier, planted in its ONNX graph from a seed: broken in a dozen ways, or harmlessly changed.

`gate.py` has them judged. What each is worth is not decided here but found on rows that the gate never sees: a broken one is
kept only if it is truly outside the budget, a harmless one only if it is truly within half of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from modelyard.optimisation.quantise import dynamic_int8, static_int8

Array = np.ndarray[Any, Any]
Random = np.random.Generator
_ROWS = 500  # at once
_TRIES = 60


@dataclass(frozen=True)
class Budget:
    """Points that may be lost: over all rows, and within the worst class."""

    whole: float
    slice: float


@dataclass(frozen=True)
class Loss:
    """What a variant truly loses, in points, on many rows: over all, and within the worst class."""

    whole: float
    slice: float

    def within(self, budget: Budget, part: float = 1.0) -> bool:
        return self.whole <= part * budget.whole and self.slice <= part * budget.slice


@dataclass
class Scene:
    """The classifier's graph, pictures as it takes them with their labels (the truth), and some to calibrate by."""

    model: onnx.ModelProto
    pictures: Array
    labels: Array
    calibration: Array
    budget: Budget
    right: Array = field(init=False)

    def __post_init__(self) -> None:
        self.right = self.answers(self.model) == self.labels

    @property
    def input(self) -> str:
        return str(self.model.graph.input[0].name)

    def copy(self) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(self.model)
        return made

    def answers(self, model: onnx.ModelProto) -> Array:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        parts = range(0, len(self.pictures), _ROWS)
        logits = [session.run(None, {self.input: self.pictures[at : at + _ROWS]})[0] for at in parts]
        whole = np.concatenate(logits)
        return np.where(np.isfinite(whole).all(axis=1), whole.argmax(axis=1), -1)

    def loss(self, model: onnx.ModelProto) -> Loss:
        right = self.answers(model) == self.labels
        lost = [100 * (self.right[mask].mean() - right[mask].mean()) for mask in self._classes()]
        return Loss(100 * float(self.right.mean() - right.mean()), float(max(lost)))

    def _classes(self) -> list[Array]:
        return [self.labels == label for label in np.unique(self.labels)]


Change = Callable[[Scene, Random], onnx.ModelProto | None]


@dataclass(frozen=True)
class Plant:
    kind: str
    model: onnx.ModelProto
    loss: Loss


def draw(scene: Scene, kind: str, random: Random) -> Plant:
    """One plant of a kind, drawn until it is what it is to be."""
    change, broken = (BROKEN[kind], True) if kind in BROKEN else (HARMLESS[kind], False)
    for _ in range(_TRIES):
        model = change(scene, random)
        if model is None:
            continue
        loss = scene.loss(model)
        if not loss.within(scene.budget) if broken else loss.within(scene.budget, 0.5):
            return Plant(kind, model, loss)
    raise RuntimeError(f"no plant of the kind '{kind}' came out {'broken' if broken else 'harmless'} in {_TRIES} tries")


# Broken


def wrong_scale(scene: Scene, random: Random) -> onnx.ModelProto:
    """Pixels that were not divided, or divided twice."""
    factor = random.choice([1 / 255, 255.0, *np.exp(random.uniform(np.log(0.05), np.log(0.5), 2)), *random.uniform(3, 20, 2)])
    return _before(scene.copy(), "Mul", np.float32(factor))


def wrong_mean(scene: Scene, random: Random) -> onnx.ModelProto:
    """Pixels about another mean."""
    return _before(scene.copy(), "Add", np.float32(random.choice([-1, 1]) * random.uniform(0.5, 4)))


def turned_pictures(scene: Scene, random: Random) -> onnx.ModelProto:
    """Height and width exchanged."""
    return _rewired_input(scene.copy(), lambda given, made: [helper.make_node("Transpose", [given], [made], perm=[0, 1, 3, 2])])


def swapped_channels(scene: Scene, random: Random) -> onnx.ModelProto:
    """Some channels of a layer in each other's place."""
    model = scene.copy()
    convolutions = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    tensor = convolutions[random.integers(len(convolutions))]
    order = np.arange(tensor.dims[0])
    moved = random.choice(len(order), max(2, len(order) // 2), replace=False)
    order[moved] = np.roll(moved, 1)
    return _changed(model, tensor.name, lambda weights: weights[order])


def broken_class(scene: Scene, random: Random) -> onnx.ModelProto:
    """One class is never answered."""
    return _biased(scene, int(random.integers(_classes(scene))), -1e4)


def swapped_labels(scene: Scene, random: Random) -> onnx.ModelProto:
    """Two classes by each other's name."""
    one, two = random.choice(_classes(scene), 2, replace=False)
    order = np.arange(_classes(scene))
    order[[one, two]] = order[[two, one]]

    def nodes(given: str, made: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Gather", [given, "planted_order"], [made], axis=1)]

    model = _rewired_output(scene.copy(), nodes)
    model.graph.initializer.append(numpy_helper.from_array(order.astype(np.int64), "planted_order"))
    return model


def calibrated_on_noise(scene: Scene, random: Random) -> onnx.ModelProto:
    """Eight bits whose ranges are those of noise instead of pictures."""
    noise = random.standard_normal((64, *scene.pictures.shape[1:])) * np.exp(random.uniform(np.log(0.01), np.log(0.3)))
    if random.uniform() < 0.5:
        noise = random.standard_normal(noise.shape) * random.uniform(50, 500)
    return _quantised(scene, noise.astype(np.float32))


def clipped_logits(scene: Scene, random: Random) -> onnx.ModelProto:
    """Logits cut off where they differ."""
    low = random.uniform(-3, 0)
    bounds = {"planted_low": low, "planted_high": low + random.uniform(0.1, 2)}

    def nodes(given: str, made: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Clip", [given, *bounds], [made])]

    model = _rewired_output(scene.copy(), nodes)
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(value), name) for name, value in bounds.items())
    return model


def wrong_on_a_slice(scene: Scene, random: Random) -> onnx.ModelProto | None:
    """Within the budget over all rows, and outside it within one class: a class is answered less than it should be."""
    chosen = int(random.integers(_classes(scene)))
    for less in np.geomspace(0.2, 20, 24):
        model = _biased(scene, chosen, -float(less))
        loss = scene.loss(model)
        if loss.whole > scene.budget.whole:
            return None
        if loss.slice > scene.budget.slice:
            return model
    return None


def too_few_bits(scene: Scene, random: Random) -> onnx.ModelProto:
    """Weights rounded to two or three bits."""
    return _rounded(scene, int(random.integers(2, 4)))


def pruned_bare(scene: Scene, random: Random) -> onnx.ModelProto:
    """Most of the weights taken away, the small ones first."""
    return _pruned(scene, random.uniform(0.6, 0.97))


def noisy_weights(scene: Scene, random: Random) -> onnx.ModelProto:
    """Weights with much noise."""
    return _noisy(scene, random, random.uniform(0.2, 1.5))


# Harmless


def eight_bits(scene: Scene, random: Random) -> onnx.ModelProto:
    """Eight bits, as they should be: ranges from pictures."""
    some = random.choice(len(scene.calibration), 64, replace=False)
    return _quantised(scene, scene.calibration[some])


def eight_bits_at_each_call(scene: Scene, random: Random) -> onnx.ModelProto:
    """Dynamic eight bits of weights with a trace of noise, so that no two are the same."""
    return _quantised(scene, None, _noisy(scene, random, 0.002))


def many_bits(scene: Scene, random: Random) -> onnx.ModelProto:
    """Weights rounded to seven to twelve bits."""
    return _noisy(scene, random, 0.0005, _rounded(scene, int(random.integers(7, 13))))


def pruned_a_little(scene: Scene, random: Random) -> onnx.ModelProto:
    """A few of the small weights taken away."""
    return _pruned(scene, random.uniform(0.02, 0.2))


def hardly_noisy(scene: Scene, random: Random) -> onnx.ModelProto:
    """Weights with a little noise."""
    return _noisy(scene, random, random.uniform(0.001, 0.03))


def other_temperature(scene: Scene, random: Random) -> onnx.ModelProto:
    """All logits times one number: the same labels, other scores."""
    times = np.float32(random.uniform(0.5, 2))

    def nodes(given: str, made: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Mul", [given, "planted_times"], [made])]

    model = _rewired_output(scene.copy(), nodes)
    model.graph.initializer.append(numpy_helper.from_array(times, "planted_times"))
    return model


BROKEN: Mapping[str, Change] = {
    "wrong scale": wrong_scale,
    "wrong mean": wrong_mean,
    "turned pictures": turned_pictures,
    "swapped channels": swapped_channels,
    "one broken class": broken_class,
    "swapped labels": swapped_labels,
    "calibrated on noise": calibrated_on_noise,
    "clipped logits": clipped_logits,
    "right on average, wrong on a slice": wrong_on_a_slice,
    "too few bits": too_few_bits,
    "pruned bare": pruned_bare,
    "noisy weights": noisy_weights,
}
HARMLESS: Mapping[str, Change] = {
    "eight bits": eight_bits,
    "eight bits at each call": eight_bits_at_each_call,
    "many bits": many_bits,
    "pruned a little": pruned_a_little,
    "hardly noisy": hardly_noisy,
    "other temperature": other_temperature,
}


# Graphs


def _classes(scene: Scene) -> int:
    return len(np.unique(scene.labels))


def _changed(model: onnx.ModelProto, name: str, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """One tensor of weights changed."""
    for tensor in model.graph.initializer:
        if tensor.name == name:
            weights = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(change(weights), weights.dtype), name))
    return model


def _all_changed(model: onnx.ModelProto, change: Callable[[Array], Array]) -> onnx.ModelProto:
    """Every tensor of weights changed, biases left as they are."""
    for name in [tensor.name for tensor in model.graph.initializer if len(tensor.dims) >= 2]:
        _changed(model, name, change)
    return model


def _rounded(scene: Scene, bits: int) -> onnx.ModelProto:
    def change(weights: Array) -> Array:
        step = np.abs(weights).max() / (2 ** (bits - 1) - 1)
        return np.round(weights / step) * step if step else weights

    return _all_changed(scene.copy(), change)


def _pruned(scene: Scene, share: float) -> onnx.ModelProto:
    def change(weights: Array) -> Array:
        return np.where(np.abs(weights) < np.quantile(np.abs(weights), share), 0, weights)

    return _all_changed(scene.copy(), change)


def _noisy(scene: Scene, random: Random, times: float, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    def change(weights: Array) -> Array:
        return weights + times * weights.std() * random.standard_normal(weights.shape)

    return _all_changed(scene.copy() if model is None else model, change)


def _biased(scene: Scene, chosen: int, by: float) -> onnx.ModelProto:
    """The logit of one class with something added."""
    bias = np.zeros(_classes(scene), np.float32)
    bias[chosen] = by

    def nodes(given: str, made: str) -> list[onnx.NodeProto]:
        return [helper.make_node("Add", [given, "planted_bias"], [made])]

    model = _rewired_output(scene.copy(), nodes)
    model.graph.initializer.append(numpy_helper.from_array(bias, "planted_bias"))
    return model


def _before(model: onnx.ModelProto, operator: str, value: Any) -> onnx.ModelProto:
    """The input with an operator applied first."""

    def nodes(given: str, made: str) -> list[onnx.NodeProto]:
        return [helper.make_node(operator, [given, "planted_value"], [made])]

    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), "planted_value"))
    return _rewired_input(model, nodes)


Nodes = Callable[[str, str], list[onnx.NodeProto]]


def _rewired_input(model: onnx.ModelProto, nodes: Nodes) -> onnx.ModelProto:
    """Nodes between the graph's input and all that takes it."""
    given = model.graph.input[0].name
    for node in model.graph.node:
        node.input[:] = ["planted_input" if name == given else name for name in node.input]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes(given, "planted_input"), *rest])
    return model


def _rewired_output(model: onnx.ModelProto, nodes: Nodes) -> onnx.ModelProto:
    """Nodes between what makes the graph's output and the output."""
    made = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["planted_output" if name == made else name for name in node.output]
        node.input[:] = ["planted_output" if name == made else name for name in node.input]
    model.graph.node.extend(nodes("planted_output", made))
    return model


def _quantised(scene: Scene, rows: Array | None, model: onnx.ModelProto | None = None) -> onnx.ModelProto:
    """Eight bits by the platform's own quantiser: with ranges from `rows`, or found at each call."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model or scene.model, source)
        if rows is None:
            dynamic_int8(source, target, {})
        else:
            static_int8(source, target, {scene.input: rows})
        return onnx.load(target)


if __name__ == "__main__":
    sys.exit("plants.py plants nothing by itself; run gate.py.")
