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
from google.protobuf.message import EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper, numpy_helper

from modelyard.conversion.base import first_line
from modelyard.engines.onnx import check
from modelyard.errors import Invalid, Unsafe

MASK = "attention_mask"
_TOKENS = ("input_ids", MASK, "token_type_ids", "position_ids")  # inputs of one shape, though its dims may have several names
_ALONE = frozenset({"Gelu", "Erf", "Tanh", "Relu", "Sigmoid", "Sqrt"})  # one tensor in, each number by itself
_PAIRS = frozenset({"Add", "Sub", "Mul", "Div", "Pow"})
_PREFIX = "unpad/"  # of every name that is added
_OF = f"{_PREFIX}tokens of "
_OPSET = 11  # the first with CumSum and Range
_BATCH_AND_TOKEN = 2  # the dims that become one


def unpad(source: Path, target: Path) -> dict[str, int]:
    """Write the graph to `target` so that it computes layers for tokens alone; how many of its matrices (`layers`) do
    (`unpadded`). Raises `Invalid` where it takes no mask of tokens, gives something for each token, or no layer can."""
    try:
        model, tokens = _read(source)
        total = sum(node.op_type == "MatMul" and node.input[1] in tokens.weights for node in model.graph.node)
        nodes = [*_places(model.graph), *_rewritten(model.graph, tokens)]
        kept = [known for known in model.graph.value_info if known.name not in tokens.made]
        for field_, values in ((model.graph.node, nodes), (model.graph.value_info, kept)):
            del field_[:]
            field_.extend(values)
        target.write_bytes(model.SerializeToString(deterministic=True))
    except (ValueError, EncodeError) as error:
        raise Invalid(f"The graph cannot be written without padding; 2 GB is the most: {first_line(error)}") from error
    return {"unpadded": tokens.unpadded, "layers": total}


def can_unpad(source: Path) -> bool:
    """Whether there is something to unpad in a graph."""
    try:
        _read(source)
    except (Invalid, Unsafe, ValueError, EncodeError):
        return False
    return True


def _read(source: Path) -> tuple[Any, _Tokens]:
    """The graph with shapes inferred, and what of it works on tokens."""
    _check(check(source))  # without the weights that lie beside it
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(source), data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        raise Invalid(f"onnx cannot tell the shapes of this graph: {first_line(error)}") from error
    tokens = _Tokens(model.graph)
    if not tokens.unpadded:
        raise Invalid("No layer of this graph takes tokens one by one, as far as its shapes tell; there is nothing to unpad.")
    if told := [given.name for given in model.graph.output if given.name in tokens.made]:
        raise Invalid(f"The graph gives '{told[0]}' for each token, padding too, so that it cannot be left out.")
    return model, tokens


def _check(model: Any) -> None:
    graph, weights = model.graph, {initial.name for initial in model.graph.initializer}
    fed = {given.name: given for given in graph.input if given.name not in weights}
    if MASK not in fed:
        raise Invalid(f"The graph takes no '{MASK}', which says where a text has ended; it takes {', '.join(fed)}.")
    dims = [dim.dim_param for dim in fed[MASK].type.tensor_type.shape.dim]
    if len(dims) != _BATCH_AND_TOKEN or not all(dims) or dims[0] == dims[1]:
        raise Invalid(f"'{MASK}' has the dims {dims}; two open ones with names of their own were expected: batch and tokens.")
    opset = max((used.version for used in model.opset_import if used.domain in {"", "ai.onnx"}), default=0)
    if opset < _OPSET:
        raise Invalid(f"The graph is of ONNX's opset {opset}; {_OPSET} is the least that has what unpadding takes.")
    if any(attribute.type in {attribute.GRAPH, attribute.GRAPHS} for node in graph.node for attribute in node.attribute):
        raise Invalid("The graph has branches or loops, and what they look at is not known; it cannot be unpadded.")


@dataclass(slots=True)
class _Tokens:
    """Which nodes work on each token alone, by place, and the tensors `made` by them. A tensor is one of tokens where its first
    dims are those of an input of tokens. `masked`: what the mask has a part in, which may be nought for padding, of which there
    is no trace once other values stand there; it stays outside. `unpadded`: how many of the nodes are matrices."""

    graph: Any
    weights: dict[str, Any] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)
    masked: set[str] = field(default_factory=lambda: {MASK})
    alone: set[int] = field(default_factory=set)
    unpadded: int = 0
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
        fed = [self._dims[given.name] for given in graph.input if given.name in _TOKENS]
        self._axes = [dims for dims in fed if len(set(dims)) == len(dims) and all(isinstance(dim, str) for dim in dims)]
        for place, node in enumerate(graph.node):
            # A shape, how much is attended to what, and what is looked up for a place: nought for nothing.
            clean = "Attention" in node.op_type or node.op_type in {"Shape", "Softmax"}
            clean |= node.op_type == "Gather" and node.input[0] in self.weights
            if not clean and self.masked.intersection(node.input):
                self.masked.update(node.output)
            elif self._works_alone(node):
                self.alone.add(place)
                self.made.update(node.output)
                self.unpadded += node.op_type == "MatMul"

    def width(self, name: str) -> int:
        """How many numbers there are of each token; 0 where it is no tensor of tokens."""
        dims = [] if name in self.weights else self._dims.get(name, [])
        there = len(dims) == _BATCH_AND_TOKEN + 1 and dims[:_BATCH_AND_TOKEN] in self._axes
        return int(dims[-1]) if there and isinstance(dims[-1], int) else 0

    def _works_alone(self, node: Any) -> bool:
        if node.domain not in {"", "ai.onnx"} or not node.input or len(node.output) != 1 or not self.width(node.output[0]):
            return False
        first, *others = node.input
        match node.op_type:
            case "MatMul":
                return bool(self.width(first)) and others[0] in self.weights and len(self.weights[others[0]].dims) == 2
            case "LayerNormalization":
                axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)
                return bool(self.width(first)) and axis in {-1, _BATCH_AND_TOKEN} and self.weights.keys() >= {*others}
            case "ReduceMean":
                return bool(self.width(first)) and self._last_alone(node)
            case operator if operator in _ALONE:
                return bool(self.width(first))
            case operator if operator in _PAIRS:
                vectors = [name for name in node.input if name in self.weights and len(self.weights[name].dims) <= 1]
                tokens = [name for name in node.input if name not in vectors]
                return all(self.width(name) for name in tokens) and any(name in self.made for name in tokens)
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
                node.input[place] = _OF + name
            elif not alone and name in tokens.made and name not in there:
                there.add(name)
                yield helper.make_node("Gather", [_OF + name, _PREFIX + "index"], [name], f"{_PREFIX}laid out: {name}")
        if alone:
            node.output[0] = _OF + node.output[0]
            for attribute in node.attribute:
                if attribute.name == "axis":
                    attribute.i = -1
        yield node


def _gathered(graph: Any, name: str, width: int) -> Iterator[Any]:
    shape, flat = f"{_PREFIX}shape of {name}", f"{_PREFIX}flat {name}"
    graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), shape))
    yield helper.make_node("Reshape", [name, shape], [flat], f"{_PREFIX}flattened: {name}")
    yield helper.make_node("Gather", [flat, _PREFIX + "kept"], [_OF + name], f"{_PREFIX}gathered: {name}")
