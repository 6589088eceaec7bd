"""How a model may be split, as its author declares it beside the class, in plain data: `PARALLEL = {…}`. The class itself knows
nothing of it, and the file imports nothing of ours.

`Split.read` takes the declaration, `layout` fits it to a network and a mesh: whatever cannot be is `Invalid` here, before a
rank computes. What only numbers show (a layer split the wrong way round) is found by `parallel/verify.py`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import gcd
from operator import attrgetter
from typing import Any

from torch import nn

from modelyard.errors import Invalid
from modelyard.training.mesh import Limits, Mesh

# A linear layer in parts: by outputs that stay in parts, by inputs that come in parts, by outputs that are put together, by
# inputs that come whole. And any layer that is whole but applied to parts, as a norm of each head: its gradients are added up.
STYLES = ("columns", "rows", "gathered", "scattered", "shared")
BY_INPUTS = ("rows", "scattered")


@dataclass(frozen=True, slots=True)
class Split:
    """Patterns of sub-modules' names, in which `*` is one part of a name.

    `tensor`: layers and their style. `heads`: modules and the attributes (dotted, too) that count their heads. `blocks`: the
    units of sharding and recomputation. `sequence`: forward is these sub-modules one after another, one tensor in, one out.

    What a recipe says of a library's model, and no declaration: `passes`: between them forward does more, which every stage of
    a pipe does for itself, by the network's own forward. `silent`: why there is no `tensor`."""

    tensor: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    blocks: str | None = None
    sequence: Sequence[str] = ()
    passes: bool = False
    silent: str = "declare PARALLEL = {'tensor': {'layers.*.up': 'columns', 'layers.*.down': 'rows'}} beside its class"

    @classmethod
    def read(cls, declared: object) -> Split:
        """A declaration as plain data. Raises `Invalid` where it has another form."""
        if not isinstance(declared, Mapping) or not set(declared) <= {"tensor", "heads", "blocks", "sequence"}:
            raise Invalid(f"PARALLEL is a dict of 'tensor', 'heads', 'blocks' and 'sequence'; there is {_shown(declared)}.")
        tensor, heads = declared.get("tensor", {}), declared.get("heads", {})
        blocks, sequence = declared.get("blocks"), declared.get("sequence", ())
        if not (isinstance(tensor, Mapping) and all(style in STYLES for style in tensor.values())):
            raise Invalid(f"PARALLEL['tensor'] gives each layer one of {', '.join(STYLES)}; there is {_shown(tensor)}.")
        if not (isinstance(heads, Mapping) and all(_names(value) for value in heads.values())):
            raise Invalid(f"PARALLEL['heads'] gives each module the names of attributes; there is {_shown(heads)}.")
        if not (blocks is None or isinstance(blocks, str)):
            raise Invalid(f"PARALLEL['blocks'] is one pattern, such as 'layers.*'; there is {_shown(blocks)}.")
        if not _names(sequence):
            raise Invalid(f"PARALLEL['sequence'] is a list of patterns; there is {_shown(sequence)}.")
        return cls(tensor, heads, blocks, tuple(sequence))

    @classmethod
    def of(cls, network: nn.Module) -> Split:
        """What is declared beside the class of a network. Raises `Invalid`."""
        return cls.read(vars(sys.modules[type(network).__module__]).get("PARALLEL", {}))

    def limits(self, network: nn.Module) -> Limits:
        """What `mesh.propose` needs to know."""
        blocks = [network.get_submodule(name) for name in _matches(self.blocks, network, "blocks")] if self.blocks else []
        largest = max((sum(p.numel() for p in block.parameters()) for block in blocks), default=None)
        dims = [size for _, size in _parts(self, network)]
        return Limits(unit=largest, tensor=gcd(*dims) if dims else 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """A split of one network on one mesh, by names: layers to their styles, the blocks, and what of the sequence each stage of
    the pipe holds."""

    tensor: Mapping[str, str]
    blocks: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    passes: bool = False


def layout(split: Split, network: nn.Module, mesh: Mesh, *, stages: int = 1, recompute: bool = False) -> Layout:
    """Raises `Invalid` where the network cannot be split so, naming layer, dim and axis. `stages`: of the whole pipe."""
    tensor = _layers(split, network, mesh) if mesh.tensor > 1 else {}
    blocks = _matches(split.blocks, network, "blocks") if split.blocks else ()
    if recompute and not blocks:
        raise Invalid("recompute needs the model's blocks: declare PARALLEL = {'blocks': 'layers.*'} beside its class.")
    parts = _stages(split, network, mesh, stages, tensor) if mesh.pipe > 1 else ((),)
    _check_ties(network, tensor, blocks if mesh.shard > 1 else (), parts)
    return Layout(tensor, blocks, parts, split.passes)


def balance(sizes: Sequence[int], parts: int) -> list[range]:
    """`sizes` in order, cut into `parts` (at least one each) so that the largest sum is as small as can be."""

    def needed(most: int) -> list[range]:
        cut: list[range] = []
        start = total = 0
        for at, size in enumerate(sizes):
            left = parts - len(cut) - 1  # parts after this one, which need a unit each
            if at > start and (total + size > most or len(sizes) - at <= left):
                cut.append(range(start, at))
                start, total = at, 0
            total += size
        return [*cut, range(start, len(sizes))]

    low, high = max(sizes), sum(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(needed(middle)) <= parts else (middle + 1, high)
    return needed(low)


def _layers(split: Split, network: nn.Module, mesh: Mesh) -> dict[str, str]:
    if not split.tensor:
        raise Invalid(
            f"The mesh has tensor={mesh.tensor}, but the model does not say which layers can be computed in parts: "
            f"{split.silent}."
        )
    for what, size in _parts(split, network):
        if size % mesh.tensor:
            raise Invalid(f"{what} is {size}, which the axis tensor={mesh.tensor} does not divide.")
    return {name: style for pattern, style in split.tensor.items() for name in _matches(pattern, network, "tensor")}


def _parts(split: Split, network: nn.Module) -> list[tuple[str, int]]:
    """Every size that `tensor` must divide, and what it is."""
    found = []
    for pattern, style in split.tensor.items():
        for name in _matches(pattern, network, "tensor"):
            layer = network.get_submodule(name)
            if style == "shared":
                continue
            if isinstance(layer, nn.Linear):
                dim, size = ("in_features", layer.in_features) if style in BY_INPUTS else ("out_features", layer.out_features)
            elif isinstance(layer, nn.Embedding) and style == "rows":
                dim, size = "num_embeddings", layer.num_embeddings
            else:
                raise Invalid(
                    f"PARALLEL['tensor'] gives '{name}' the style '{style}', but it is a {type(layer).__name__}: nn.Linear "
                    f"takes {', '.join(STYLES)}, nn.Embedding takes rows."
                )
            found.append((f"{dim} of '{name}' ({style})", size))
    for pattern, attributes in split.heads.items():
        for name in _matches(pattern, network, "heads"):
            for attribute in attributes:
                count = _attribute(network.get_submodule(name), attribute)
                if not isinstance(count, int):
                    raise Invalid(
                        f"PARALLEL['heads'] names '{attribute}' of '{name}', which is {count!r}; a number was expected."
                    )
                found.append((f"{attribute} of '{name}'", count))
    return found


def _attribute(module: nn.Module, name: str) -> Any:
    try:
        return attrgetter(name)(module)
    except AttributeError:
        return None


def _stages(
    split: Split, network: nn.Module, mesh: Mesh, stages: int, tensor: Mapping[str, str]
) -> tuple[tuple[str, ...], ...]:
    if not split.sequence:
        raise Invalid(
            f"The mesh has pipe={mesh.pipe}, but the model does not say that it is a sequence: declare "
            "PARALLEL = {'sequence': ['embed', 'layers.*', 'head']} beside its class."
        )
    units = [name for pattern in split.sequence for name in _matches(pattern, network, "sequence")]
    for a in units:
        inside = [b for b in units if b.startswith(f"{a}.") or (b == a and units.count(a) > 1)]
        if inside:
            raise Invalid(f"PARALLEL['sequence'] names '{inside[0]}' twice: by itself or as part of '{a}'.")
    outside = [name for name in network.state_dict() if not owner(name, units)]
    if outside:
        raise Invalid(f"PARALLEL['sequence'] leaves out {_some(outside)}: in a pipe no stage would hold it.")
    groups = _inseparable(network, units, tensor)
    if len(groups) < stages:
        what = f"{len(groups)} parts that learn and can be held apart ({_some([' + '.join(group) for group in groups])})"
        raise Invalid(f"The sequence has {what}; {stages} stages need one each.")
    sizes = [sum(p.numel() for name in group for p in network.get_submodule(name).parameters()) for group in groups]
    return tuple(tuple(name for at in part for name in groups[at]) for part in balance(sizes, stages))


def _inseparable(network: nn.Module, units: Sequence[str], tensor: Mapping[str, str]) -> list[list[str]]:
    """`units` in groups that a stage holds together: in each something learns, and between a layer that leaves its answer in
    parts (columns) and the one that takes it so (rows) there is no border, which only what is whole can cross."""
    groups: list[list[str]] = []
    parted = False
    for name in units:
        learned = bool(groups) and any(_learns(network, unit) for unit in groups[-1])
        if not groups or (not parted and learned and _learns(network, name)):
            groups.append([])
        groups[-1].append(name)
        styles = {style for layer, style in tensor.items() if owner(layer, [name])}
        parted = "rows" not in styles and (parted or "columns" in styles)
    return groups


def _learns(network: nn.Module, name: str) -> bool:
    return any(p.requires_grad for p in network.get_submodule(name).parameters())


def owner(name: str, units: Sequence[str]) -> str | None:
    """Which of `units` the parameter or sub-module `name` belongs to."""
    return next((unit for unit in units if name == unit or name.startswith(f"{unit}.")), None)


def _check_ties(network: nn.Module, tensor: Mapping[str, str], blocks: Sequence[str], stages: Sequence[Sequence[str]]) -> None:
    """Parameters with several names must be held together, whole."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for tied in (group for group in names.values() if len(group) > 1):
        layers = [name for name in tied if owner(name, list(tensor))]
        if layers:
            raise Invalid(f"{_some(tied)} are one parameter; the axis tensor would split '{layers[0]}' apart from it.")
        held = {next((at for at, units in enumerate(stages) if owner(name, units)), 0) for name in tied}
        if len(held) > 1 and network.get_parameter(tied[0]).requires_grad:  # what does not learn stays equal
            raise Invalid(
                f"{_some(tied)} are one parameter that learns, but lie in stages {sorted(held)} of the axis pipe: use another "
                "axis, or leave it as it is (under LoRA it is)."
            )
        if len({owner(name, blocks) for name in tied}) > 1:
            raise Invalid(f"{_some(tied)} are one parameter, but lie in different blocks, which the axis shard holds apart.")


def _matches(pattern: str | None, network: nn.Module, part: str) -> tuple[str, ...]:
    regex = re.compile(re.escape(pattern or "").replace(r"\*", r"[^.]+"))
    found = tuple(name for name, _ in network.named_modules() if name and regex.fullmatch(name))
    if not found:
        there = [name for name, _ in network.named_modules() if name]
        raise Invalid(
            f"PARALLEL['{part}'] names '{pattern}', which is no sub-module of {type(network).__name__}: {_some(there)}."
        )
    return found


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _some(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:6]) + (", …" if len(names) > 6 else "")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
