"""Runs a program of torch.export (`.pt2`), operator by operator, with PyTorch's own kernels. Made by replicas, by verification
and by measurement, so that what is measured is what serves. It knows no batching, no transform and no protocol.

Unlike the engine `torch` it needs no source of the user's, and runs none: `programs` reads the file as data, and only operators
of ATen are called. torch's own loader, which runs what a file says, is not used (decision 31).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.programs import ARITHMETIC, SCALARS, Archive, Held, Program, read
from modelyard.engines.schema import Complex, Device, Named, Node, only
from modelyard.engines.tensors import agree
from modelyard.errors import Invalid, Unsafe
from modelyard.tensors import Array, Signature

# What operators raise of tensors that they do not take.
ERRORS = (RuntimeError, ValueError, TypeError, IndexError, ArithmeticError, AttributeError, MemoryError)
# Operators by these names are torch's own affair, but for those that programs have and the core of ATen.
_INTERNAL = re.compile(
    "_assert_(async|scalar|tensor_metadata)|_native_multi_head_attention|_safe_softmax|_unsafe_view|_weight_norm"
    "|_scaled_dot_product_flash_attention_for_cpu|_transformer_encoder_layer_fwd"
)
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_STRIDED = 7


class Pt2Engine:
    """A `BatchEngine` over `card.files['pt2']`. Raises `Unsafe` for a path outside `folder` and for what could run code,
    `Invalid` where the file is no program, has an operator that this torch lacks, or its tensors are not those of the card."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> None:
        if "pt2" not in card.files:
            raise Invalid("model.json names no file for the engine 'pt2': expected files.pt2.")
        torch.set_num_threads(threads)
        with Archive(inside(folder, card.files["pt2"])) as archive:
            program = read(archive)
            agree(card.signature, program.signature)
            content = {place: archive.read(place) for place in {held.place for held in program.held}}
            self._held = {held.name: _tensor(archive, held, content[held.place]) for held in program.held}
        self._signature = card.signature
        self._limits = program.limits
        slots = {held.value: place for place, held in enumerate(program.held)}
        slots |= {value: len(slots) + place for place, value in enumerate(program.takes)}
        self._inputs = [(spec.name, slots[value]) for spec, value in zip(program.signature.inputs, program.takes, strict=True)]
        self._steps = _steps(program, slots)
        outputs = dict(zip((spec.name for spec in program.signature.outputs), (slots[v] for v in program.gives), strict=True))
        self._outputs = [(spec.name, outputs[spec.name]) for spec in card.outputs]
        self._values: list[Any] = [*self._held.values(), *[None] * (len(slots) - len(program.held))]

    @property
    def signature(self) -> Signature:
        return self._signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        for limit in self._limits:
            if not limit.low <= batch[limit.name].shape[limit.axis] <= limit.high:
                raise Invalid(
                    f"Dim {limit.axis} of '{limit.name}' may be {limit.low} to {limit.high}: so the model was exported."
                )
        values = self._values.copy()
        with torch.inference_mode():
            for name, slot in self._inputs:
                values[slot] = torch.tensor(batch[name])  # a copy: a program may write in place, and the batch is not ours
            for step in self._steps:
                _keep(step.outputs, step.call(*_filled(step.args, values), **_filled(step.named, values)), values)
                for slot in step.done:
                    values[slot] = None
            return {name: values[slot].numpy() for name, slot in self._outputs}

    def changes(self, batch: Mapping[str, Array]) -> list[str]:
        """Names of the program's own tensors that a forward writes to: the next answer would follow from this one. Their bytes
        are compared, too: not every operator says what it writes."""
        before = {name: tensor.clone() for name, tensor in self._held.items()}
        self.forward(batch)
        return [name for name, held in self._held.items() if held._version or not _same(held, before[name])]

    def close(self) -> None:
        del self._steps, self._values, self._held


def _same(one: torch.Tensor, two: torch.Tensor) -> bool:
    first, second = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, two))
    return torch.equal(first, second)


def signature_of(path: Path) -> Signature:
    """The tensors a program takes and gives, -1 where a dim is open."""
    with Archive(path) as archive:
        return read(archive).signature


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a value lies while a program runs."""

    place: int


@dataclass(frozen=True, slots=True)
class _Step:
    """One call, with a `_Slot` wherever a value belongs. `outputs`: that of what it returns, or a list of those of its parts;
    None is left. `done`: values that no later step needs."""

    call: Callable[..., Any]
    args: list[Any]
    named: dict[str, Any]
    outputs: Any
    done: tuple[int, ...]


def _tensor(archive: Archive, held: Held, data: bytearray) -> torch.Tensor:
    meta = held.meta
    sizes, strides, (offset,) = (
        [_literal(number) for number in numbers] for numbers in (meta.sizes, meta.strides, [meta.storage_offset])
    )
    _on_cpu(meta.device, meta.layout)
    dtype = _dtype(meta.dtype)
    try:
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return flat.as_strided(sizes, strides, offset)
    except (RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise Invalid(
            f"'{archive.name}' is damaged: tensor '{held.name}' does not fit {held.place}: {_first(error)}"
        ) from error


def _literal(number: Any) -> int:
    kind, value = only(number)
    if kind != "as_int":
        raise Invalid("The program does not hold together: a tensor that it comes with has an open dim.")
    return int(value)


def _first(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def _steps(program: Program, slots: dict[str, int]) -> list[_Step]:
    """The graph's nodes as calls; values that they make get slots of their own."""
    made, kept = [], len(program.held)
    for node in program.said.graph_module.graph.nodes:
        call: Any = ARITHMETIC.get(node.target) or _operator(node.target, program.said.torch_version)
        given = {each.name: _value(*only(each.arg), slots) for each in node.inputs}
        args = list(given.values()) if node.target in ARITHMETIC else []
        named = {} if node.target in ARITHMETIC else given
        for argument in [] if node.target in ARITHMETIC else call._schema.arguments:
            if argument.kwarg_only or argument.name not in named:
                break
            args.append(named.pop(argument.name))
        made.append(_Step(call, args, named, _outputs(node, slots), ()))
    needed, steps = {slots.get(value, -1) for value in program.gives}, []
    if -1 in needed:
        raise Invalid("The program does not hold together: it gives what it never made.")
    for step in reversed(made):
        here = set(_used([step.args, list(step.named.values()), step.outputs]))
        done = tuple(sorted(slot for slot in here - needed if slot >= kept))
        needed |= here
        steps.append(_Step(step.call, step.args, step.named, step.outputs, done))
    return steps[::-1]


def _operator(target: str, version: str) -> Any:
    """An operator of ATen by 'torch.ops.aten.NAME.OVERLOAD'."""
    *_, name, overload = target.split(".")
    packet = getattr(torch.ops.aten, name, None)
    known = isinstance(packet, torch._ops.OpOverloadPacket) and overload in packet.overloads()
    if not known or not _dispatched(name, overload):
        raise Invalid(f"PyTorch {torch.__version__} has no operator {target}; the program was written by {version[:40]}.")
    operator = getattr(packet, overload)
    if name.startswith("_") and not (name.startswith("__") or _INTERNAL.fullmatch(name) or torch.Tag.core in operator.tags):
        raise Unsafe(f"The program calls {target}, an operator of torch's own that is not run here.")
    return operator


def _dispatched(name: str, overload: str) -> bool:
    """Whether tensors choose its kernel: operators of TorchScript's alone write files and set what holds for the process."""
    try:
        torch._C._dispatch_find_schema_or_throw(f"aten::{name}", "" if overload == "default" else overload)
    except RuntimeError:
        return False
    return True


def _outputs(node: Node, slots: dict[str, int]) -> Any:
    found = [_made(*only(output), slots) for output in node.outputs]
    return found[0] if len(found) == 1 else found or None


def _made(kind: str, said: Any, slots: dict[str, int]) -> Any:
    """A new slot for each value that a node gives."""
    if kind == "as_none":
        return None
    if isinstance(said, list):
        return [_made(kind, part, slots) for part in said]
    name = said.name if isinstance(said, Named) else getattr(said, "as_name", msgspec.UNSET)
    if name is msgspec.UNSET or name in slots:
        raise Invalid(f"The program does not hold together: a node gives {name or kind}, which is not one new value.")
    return _Slot(slots.setdefault(name, len(slots)))


def _value(kind: str, said: Any, slots: Mapping[str, int]) -> Any:
    """An argument as an operator takes it, with `_Slot` for what is known when the program runs."""
    if isinstance(said, list):
        return [_value(kind, part, slots) for part in said]
    if kind == "as_none":
        return None
    if isinstance(said, Named) or kind == "as_name":
        name = said.name if isinstance(said, Named) else said
        if name not in slots:
            raise Invalid(f"The program does not hold together: it takes '{name}', which nothing gives before.")
        return _Slot(slots[name])
    if kind == "as_scalar_type":
        return _dtype(said)
    if kind == "as_memory_format":
        return getattr(torch, _MEMORY_FORMATS.get(said, "preserve_format"))
    if kind == "as_layout":
        _on_cpu(None, said)
        return torch.strided
    if isinstance(said, Device):
        _on_cpu(said, _STRIDED)
        return torch.device("cpu")
    if isinstance(said, Complex):
        return complex(float(said.real), float(said.imag))
    if isinstance(said, msgspec.Struct):
        return _value(*only(said), slots)  # type: ignore[arg-type]
    return float(said) if kind in ("as_float", "as_floats") else said


def _dtype(number: int) -> torch.dtype:
    if number not in SCALARS:
        raise Invalid(f"The program has numbers of torch's type {number}; expected one of {', '.join(SCALARS.values())}.")
    found: torch.dtype = getattr(torch, SCALARS[number])
    return found


def _on_cpu(device: Device | None, layout: int) -> None:
    if device is not None and device.type != "cpu":
        raise Invalid(f"The program was exported on {device.type[:20]}: move the module to the CPU first.")
    if layout != _STRIDED:
        raise Invalid("The program has sparse tensors; expected plain ones.")


def _used(part: Any) -> list[int]:
    """The slots in arguments or outputs."""
    if isinstance(part, list):
        return [slot for each in part for slot in _used(each)]
    return [part.place] if isinstance(part, _Slot) else []


def _filled(part: Any, values: list[Any]) -> Any:
    """An argument with its values."""
    kind = type(part)
    if kind is _Slot:
        return values[part.place]
    if kind is list:
        return [_filled(each, values) for each in part]
    if kind is dict:
        return {name: _filled(each, values) for name, each in part.items()}
    return part


def _keep(outputs: Any, result: Any, values: list[Any]) -> None:
    if type(outputs) is _Slot:
        values[outputs.place] = result
    elif outputs is not None:
        for each, part in zip(outputs, result, strict=True):
            _keep(each, part, values)
