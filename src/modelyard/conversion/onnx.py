"""PyTorch → ONNX by torch.export, with an open batch dim. Called through `CONVERTERS`; whoever converts also verifies.

The same weights give the same bytes: whatever the exporter notes about the machine and the source (stack traces with paths)
is taken out again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from modelyard.conversion.base import first_line, fixed_rows
from modelyard.conversion.cards import tensor_cards
from modelyard.conversion.tracing import causes, few, open_dims, quiet
from modelyard.engines.base import ModelCard
from modelyard.engines.onnx import signature_of
from modelyard.engines.torch import in_order, load_module
from modelyard.errors import Invalid
from modelyard.plugins import load
from modelyard.tensors import Array

FILE = "model.onnx"
_MISSING = re.compile(r"No ONNX function found for <OpOverload\(op='(?P<operator>[^']+)', overload='(?P<overload>[^']+)'\)>")
_OWN_LEAST = 2  # torch.export takes sizes of 0 and 1 for special: not a bound of the module's
_ENDLESS = 1 << 62
_TRIED = 4096  # the largest size that a module is run with to see whether its bound is a branch
_INLINE = 1 << 30  # bytes of weights kept in the file itself; protobuf ends at 2 GiB


class OnnxConverter:
    """`module` + `weights` → `model.onnx` and its card; dims stated as -1 stay open. A Hugging Face folder of a language model
    → graphs with a cache (`decoders`)."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        if card.module is None and "config" in card.files:
            made: ModelCard = load("modelyard.conversion.decoders:from_folder")(folder, card, out)
            return made
        return export(load_module(folder, card), card, out, samples, bounded=False)


CONVERTER = OnnxConverter()


def export(
    module: nn.Module, card: ModelCard, out: Path, samples: Mapping[str, Array], file: str = FILE, *, bounded: bool = True
) -> ModelCard:
    """`module`, in eval mode, with the tensors that `card` states, as `file` and its card in `out`; as `Converter`. With
    `bounded` open dims past the batch may have bounds, which whoever serves the graph keeps to."""
    fixed = fixed_rows(card.signature)
    arguments = [torch.from_numpy(few(samples[spec.name], fixed)) for spec in card.inputs]
    program = _export(module, card, arguments)
    if len(program.model.graph.outputs) != len(card.outputs):  # one for each tensor in the result, however deep
        module = _Tensors(module, [spec.name for spec in card.outputs])
        program = _export(module, card, arguments)
    _check_bounds(program.exported_program, module, card, arguments, past=not bounded)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    program.save(out / file, external_data=size > _INLINE)
    _forget_the_machine(out / file)
    signature, _ = signature_of(out / file)
    made = ModelCard(
        task=card.task,
        engines=("onnx",),
        files={"onnx": file},
        inputs=tensor_cards(signature.inputs),
        outputs=tensor_cards(signature.outputs),
        transform=card.transform,
        labels=card.labels,
    )
    _batch_is_open(card, made)
    made.save(out)
    return made


def _export(module: nn.Module, card: ModelCard, arguments: list[torch.Tensor]) -> Any:
    dims = tuple(open_dims(spec.shape, value.ndim) for spec, value in zip(card.inputs, arguments, strict=True))
    shapes = _by_parameter(module, dims)
    try:
        with quiet():
            return torch.onnx.export(
                module,
                tuple(arguments),
                dynamo=True,
                verbose=False,
                input_names=[spec.name for spec in card.inputs],
                output_names=[spec.name for spec in card.outputs],
                dynamic_shapes=shapes,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = _lacking(error, module, tuple(arguments), shapes) or _reason(error)
        raise Invalid(f"{_kind(module)} cannot be exported to ONNX: {reason}") from error


class _Tensors(nn.Module):
    """A module without what it gives besides the tensors of these names."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self._names = module, names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(in_order(self.module(*given), self._names))


def _kind(module: nn.Module) -> str:
    return type(module.module if isinstance(module, _Tensors) else module).__name__


def _check_bounds(program: Any, module: nn.Module, card: ModelCard, arguments: list[Tensor], *, past: bool) -> None:
    """Raises `Invalid` where the trace holds for some sizes of an open batch alone, or with `past` of an open dim past it: the
    graph keeps the branch that was traced, and would answer another way for the others. A size past the batch that the module
    does not take either, less than a kernel or more than a table of positions, is none of them."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    shapes = [values[name].shape for name in program.graph_signature.user_inputs]
    for spec, shape in zip(card.inputs, shapes, strict=True):
        for axis, size in enumerate(shape):
            limits = None if isinstance(size, int) else program.range_constraints.get(size.node.expr)
            if limits is None or (axis and not past):
                continue
            low, high = limits.lower, limits.upper
            beyond = ([int(low) - 1] if low > _OWN_LEAST else []) + ([int(high) + 1] if high < _ENDLESS else [])
            if any(axis == 0 or other > _TRIED or _runs(module, arguments, shapes, size, other) for other in beyond):
                sizes = f"{low} to {high}" if high < _ENDLESS else f"{low} or more"
                raise Invalid(
                    f"{_kind(module)} cannot be exported to ONNX for every size: forward decides by dim {axis} of input "
                    f"'{spec.name}', and the graph would hold for {sizes} alone. Take the branch out, or state the dim's size."
                )


def _runs(module: nn.Module, arguments: list[Tensor], shapes: list[Any], dim: Any, size: int) -> bool:
    """Whether the module takes the arguments with all dims that follow from `dim` as for such a size of it."""
    given = []
    for value, shape in zip(arguments, shapes, strict=True):
        for axis, other in enumerate(shape):
            if not isinstance(other, int) and other.node.expr.free_symbols == {dim.node.expr}:
                wanted = int(other.node.expr.xreplace({dim.node.expr: size}))
                value = value.index_select(axis, torch.arange(wanted) % value.shape[axis])
        given.append(value)
    try:
        with quiet(), torch.inference_mode():
            module(*given)
    except Exception:  # noqa: BLE001  whatever the user's source raises
        return False
    return True


def _by_parameter(module: nn.Module, dims: tuple[dict[int, Any], ...]) -> tuple[Any, ...]:
    """torch.export wants a variadic forward's dims as one nested tuple."""
    variadic = module.forward.__code__.co_flags & 0x04 if hasattr(module.forward, "__code__") else False
    return (dims,) if variadic else dims


def _forget_the_machine(path: Path) -> None:
    """Take paths, stack traces and class names of the exporting process out of the file."""
    model = onnx.load(path, load_external_data=False)
    for message in (model, model.graph, *model.functions):
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    for graph in (model.graph, *model.functions):
        for node in _nodes(graph.node):
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    path.write_bytes(model.SerializeToString(deterministic=True))


def _nodes(nodes: Any) -> Iterator[Any]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node)


def _batch_is_open(card: ModelCard, made: ModelCard) -> None:
    """Raises `Invalid` where the exporter specialised the batch although the version's card leaves it open."""
    for stated, spec in zip(card.inputs, made.inputs, strict=True):
        if (stated.shape or (-1,))[0] == -1 and (spec.shape or (-1,))[0] != -1:
            raise Invalid(
                f"Input '{spec.name}' was exported for batches of {spec.shape and spec.shape[0]} only: "
                "forward mixes the batch with another dim (look for view, reshape or flatten of dim 0)."
            )


def _reason(error: Exception) -> str:
    """The innermost cause in one line: the exporter's own message is a page."""
    return first_line(list(causes(error))[-1])


def _lacking(error: Exception, module: nn.Module, arguments: tuple[Any, ...], shapes: Any) -> str | None:
    """Which operator ONNX does not have, and the layers that use it; None where that is not what is wrong. The exporter names
    the operator alone: where it stands is looked up in the program, traced once more."""
    match = next((said for cause in causes(error) if (said := _MISSING.search(str(cause)))), None)
    if match is None:
        return None
    with quiet():
        program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    # The exporter takes operators apart before it looks for them: aten.special_bessel_j0 is prims.bessel_j0 to it.
    name = match["operator"].rpartition(".")[2]
    found = [node for node in program.graph.nodes if str(node.target).rpartition(".")[0].endswith(name)]
    operator = str(found[0].target).rpartition(".")[0] if found else match["operator"]
    stacks = [node.meta.get("nn_module_stack", {}) for node in found]
    layers = dict.fromkeys(_layer(list(stack.values())[-1]) for stack in stacks if stack)
    where = f"layer {', '.join(layers)}" if layers else "forward"
    return f"ONNX has no operator for {operator}, which {where} uses; use another there."


def _layer(entry: Any) -> str:
    """'layers.0' (Wave), of a module's place in the program; the whole network has no name."""
    path, kind = entry
    name = str(path).removeprefix("L['self']").lstrip(".")
    return f"'{name}' ({str(kind).rpartition('.')[2]})" if name else f"'{str(kind).rpartition('.')[2]}' itself"
