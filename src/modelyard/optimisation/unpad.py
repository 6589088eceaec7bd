"""An encoder of texts that computes no padding. Texts of one batch differ in length, and much of what is computed of it is of
the places that fill it up, which nobody looks at. What is done to each token alone (matrices, norms, activations) is done here
to the tokens that are there, one after another; only what looks at several of them (attention, pooling) has them laid out as a
batch again, with some other token's values where nothing was.

The answers stay the same where the graph masks padding, as it must for a text not to change with its company; `chain` proves
that on real texts. The idea is Effective Transformer's and ByteTransformer's (Zhai et al., 2023). Knows graphs alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelyard.errors import Invalid

MASK = "attention_mask"
_ALONE = frozenset({"Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Sqrt"})  # one tensor in, each number by itself
_PAIRS = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_PREFIX = "unpad/"  # of every name that is added
_OPSET = 11  # the first with CumSum and Range
_BATCH_AND_TOKEN = 2  # the dims that become one


def unpad(source: Path, target: Path) -> dict[str, int]:
    """Write the graph to `target` so that it computes layers for tokens alone; how many of its matrices (`layers`) do
    (`unpadded`). Raises `Invalid` where it takes no mask of tokens, gives something for each token, or no layer can."""
    model = onnx.load(source)
    _check(model)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    tokens = _Tokens(model.graph)
    if not tokens.layers:
        raise Invalid("No layer of this graph takes tokens one by one, as far as its shapes tell; there is nothing to unpad.")
    if told := [given.name for given in model.graph.output if given.name in tokens.made]:
        raise Invalid(f"The graph gives '{told[0]}' for each token, padding too, so that it cannot be left out.")
    total = sum(node.op_type == "MatMul" and node.input[1] in tokens.weights for node in model.graph.node)
    nodes = [*_places(model.graph), *_rewritten(model.graph, tokens)]
    kept = [known for known in model.graph.value_info if known.name not in tokens.made]
    for field_, values in ((model.graph.node, nodes), (model.graph.value_info, kept)):
        del field_[:]
        field_.extend(values)
    target.write_bytes(model.SerializeToString(deterministic=True))
    return {"unpadded": tokens.layers, "layers": total}


def _check(model: Any) -> None:
    graph = model.graph
    if MASK not in {given.name for given in graph.input}:
        takes = ", ".join(given.name for given in graph.input)
        raise Invalid(f"The graph takes no '{MASK}', which says where a text has ended; it takes {takes}.")
    opset = max((used.version for used in model.opset_import if used.domain in {"", "ai.onnx"}), default=0)
    if opset < _OPSET:
        raise Invalid(f"The graph is of ONNX's opset {opset}; {_OPSET} is the least that has what unpadding takes.")
    if any(attribute.type in {attribute.GRAPH, attribute.GRAPHS} for node in graph.node for attribute in node.attribute):
        raise Invalid("The graph has branches or loops, and what they look at is not known; it cannot be unpadded.")


@dataclass(slots=True)
class _Tokens:
    """Which nodes work on each token alone, by place, and the tensors `made` by them. A tensor is one of tokens where its
    first dims are the batch and the tokens of an input. `layers`: how many of the nodes are matrices."""

    graph: Any
    weights: dict[str, Any] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    layers: int = 0
    _dims: dict[str, list[Any]] = field(default_factory=dict)
    _axes: list[list[Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        graph = self.graph
        self.weights = {initial.name: initial for initial in graph.initializer} | {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        for known in (*graph.value_info, *graph.input, *graph.output):
            self._dims[known.name] = [dim.dim_param or dim.dim_value for dim in known.type.tensor_type.shape.dim]
        fed = [self._dims[given.name] for given in graph.input if given.name not in self.weights]
        self._axes = [dims for dims in fed if len(dims) == _BATCH_AND_TOKEN and all(isinstance(dim, str) for dim in dims)]
        for place, node in enumerate(graph.node):
            if self._works_alone(node):
                self.alone.add(place)
                self.made.update(node.output)
                self.layers += node.op_type == "MatMul"

    def width(self, name: str) -> int:
        """How many numbers there are of each token; 0 where it is no tensor of tokens."""
        dims = [] if name in self.weights else self._dims.get(name, [])
        there = len(dims) == _BATCH_AND_TOKEN + 1 and dims[:_BATCH_AND_TOKEN] in self._axes and isinstance(dims[-1], int)
        return int(dims[-1]) if there else 0

    def _works_alone(self, node: Any) -> bool:
        """A sum of two tensors of tokens does only where both were made so: what comes from elsewhere may be the mask, and of
        padding that is made nought by it there is no trace left once other values stand there."""
        if node.domain not in {"", "ai.onnx"} or len(node.output) != 1 or not self.width(node.output[0]):
            return False
        first, *others = node.input
        match node.op_type:
            case "MatMul":
                return bool(self.width(first)) and others[0] in self.weights and len(self.weights[others[0]].dims) == 2
            case "LayerNormalization":
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
                return bool(self.width(first)) and axis in {-1, _BATCH_AND_TOKEN}
            case "ReduceMean":
                return first in self.made and self._last_alone(node)
            case operator if operator in _ALONE:
                return bool(self.width(first))
            case operator if operator in _PAIRS:
                vectors = [name for name in node.input if name in self.weights and len(self.weights[name].dims) <= 1]
                tokens = [name for name in node.input if name not in vectors]
                return bool(tokens) and all(name in self.made for name in tokens)
        return False

    def _last_alone(self, node: Any) -> bool:
        """Whether a mean is over the last dim, which stays."""
        said = {attribute.name: list(attribute.ints) or attribute.i for attribute in node.attribute}
        axes = self.weights[node.input[1]] if len(node.input) > 1 and node.input[1] in self.weights else None
        over = said.get("axes") if axes is None else numpy_helper.to_array(axes).tolist()
        return over == [-1] and said.get("keepdims", 1) == 1


def _places(graph: Any) -> Iterator[Any]:
    """`kept`: INT64 [tokens], which places of a flattened batch are tokens; the first of each text is one in any case.
    `index`: INT64 [batch, longest], where in these each place is; one of padding has the token before it."""
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), _PREFIX + name)
        for name, value in (("flat", [-1]), ("zero", 0), ("one", 1))
    )
    way: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Cast", [MASK], "mask", {"to": TensorProto.BOOL}),
        ("Shape", [MASK], "shape", {}),
        ("Gather", ["shape", "one"], "longest", {}),
        ("Range", ["zero", "longest", "one"], "place", {}),
        ("Equal", ["place", "zero"], "first", {}),
        ("Or", ["mask", "first"], "there", {}),
        ("Reshape", ["there", "flat"], "each", {}),
        ("NonZero", ["each"], "found", {}),
        ("Reshape", ["found", "flat"], "kept", {}),
        ("Cast", ["each"], "ones", {"to": TensorProto.INT64}),
        ("CumSum", ["ones", "zero"], "sum", {}),
        ("Sub", ["sum", "one"], "before", {}),
        ("Reshape", ["before", "shape"], "index", {}),
    )
    for operator, given, made, more in way:
        inputs = [name if name == MASK else _PREFIX + name for name in given]
        yield helper.make_node(operator, inputs, [_PREFIX + made], f"{_PREFIX}{operator}_{made}", **more)


def _rewritten(graph: Any, tokens: _Tokens) -> Iterator[Any]:
    """The nodes; before one that works on tokens what it takes is gathered from the batch, and before another the batch is laid
    out again, each once."""
    there = set[str]()
    for number, node in enumerate(graph.node):
        alone = number in tokens.alone
        for place, name in enumerate(node.input):
            if alone and (name in tokens.made or tokens.width(name)):
                if name not in tokens.made and name not in there:
                    there.add(name)
                    yield from _gathered(graph, name, tokens.width(name))
                node.input[place] = _PREFIX + name
            elif not alone and name in tokens.made and name not in there:
                there.add(name)
                yield helper.make_node("Gather", [_PREFIX + name, _PREFIX + "index"], [name], f"{_PREFIX}laid out: {name}")
        if alone:
            node.output[0] = _PREFIX + node.output[0]
            for attribute in node.attribute:
                if attribute.name == "axis":
                    attribute.i = -1
        yield node


def _gathered(graph: Any, name: str, width: int) -> Iterator[Any]:
    shape, flat = f"{_PREFIX}shape of {name}", f"{_PREFIX}flat {name}"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), shape))
    yield helper.make_node("Reshape", [name, shape], [flat], f"{_PREFIX}flattened: {name}")
    yield helper.make_node("Gather", [flat, _PREFIX + "kept"], [_PREFIX + name], f"{_PREFIX}gathered: {name}")
