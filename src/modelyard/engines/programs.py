"""Reads a program of torch.export (`.pt2`) as data, without torch: its graph, where its tensors lie, what it takes and gives.

torch's own loader believes such an archive. It unpickles weights, constants and example inputs, evaluates sizes and guards as
Python, compiles names into source, imports the modules that containers name, and loads compiled libraries. Here nothing is run:
an archive is a graph of ATen's operators over raw tensors, or it is refused. What else lies in it (example inputs, guards,
traces) is not opened.
"""

from __future__ import annotations

import math
import operator
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import msgspec
import numpy as np

from modelyard.engines.files import UNREADABLE, stored
from modelyard.engines.schema import Argument, Calls, Config, Number, Payload, Said, TensorMeta, Tree, only
from modelyard.errors import Invalid, Unsafe
from modelyard.tensors import DATATYPES, Signature, TensorSpec

MODEL = "models/model.json"
CONFIGS = {kind: f"data/{kind}/model_{kind}_config.json" for kind in ("weights", "constants")}
MARKS = {"archive_format": b"pt2", "archive_version": b"0", "byteorder": b"little"}
_MAJOR = 8  # of torch's schema: torch/_export/serde/schema.py
_PLACES = re.compile(
    r"models/model\.json|data/(weights|constants)/(model_\1_config\.json|(weight|tensor)_[0-9]+)|data/sample_inputs/model\.pt"
    r"|extra/[^\0]+|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version"
    r"|\.storage_alignment"
)
EXAMPLES = "data/sample_inputs/model.pt"
# torch's numbers of element types, by numpy's name where it has one.
SCALARS = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 9: "complex32"}
SCALARS |= {10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 34: "uint32", 35: "uint64"}
_DATATYPES = {dtype.name: name for name, dtype in DATATYPES.items() if dtype != np.dtype(object)}
_OPERATOR = re.compile(r"torch\.ops\.aten\.[A-Za-z_][A-Za-z0-9_]*\.[A-Za-z_][A-Za-z0-9_]*")
# Operators that open files or print, and kernels that believe the indices or layouts they are given.
_REFUSED = re.compile("from_file|_print|segment_reduce|.*_backward.*|(mkldnn|to_mkldnn|fbgemm|sparse|resize|set)(_.*)?")
# What torch computes sizes with. Of numbers, its own functions are these.
ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    **{
        f"_operator.{name}": getattr(operator, name)
        for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos", "and_", "or_")
    },
    **{f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "truediv", "mod", "pow")},
    "math.trunc": math.trunc,
    "torch.sym_float": float,
    "torch.sym_int": int,
    "torch.sym_ite": lambda condition, one, other: one if condition else other,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_not": operator.not_,
    "torch._sym_sqrt": math.sqrt,
}
# A size is an expression of sympy, written out. Its words are symbols and these.
_WORDS = re.compile(
    "[a-z]{1,4}[0-9]+|Symbol|Integer|Rational|Float|Mul|Add|Pow|Max|Min|Mod|Abs|FloorDiv|PythonMod|CleanDiv|CeilDiv|CeilToInt"
    "|FloorToInt|IntTrueDiv|FloatTrueDiv|ToFloat|TruncToInt|TruncToFloat|RoundToInt|ModularIndexing|Where|PowByNatural|FloatPow"
    "|Identity|Equality|Unequality|LessThan|GreaterThan|StrictLessThan|StrictGreaterThan|Eq|Ne|Le|Ge|Lt|Gt|And|Or|Not|true|false"
    "|True|False|positive|negative|nonnegative|integer|real"
)
_SYMBOL = re.compile(r"Symbol\('([a-z]{1,4}[0-9]+)'(?:, [a-z]+=True)*\)|([a-z]{1,4}[0-9]+)")
_LONGEST = 2000  # characters of an expression
_CONTAINERS = frozenset({"builtins.tuple", "builtins.list", "builtins.dict"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-/:]{0,127}")
_T = TypeVar("_T")


class Archive:
    """An opened `.pt2`, whose entries go by their places under its root. Raises `Unsafe` for a zip or an entry that no program
    of plain tensors has."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        names = stored(path)
        self._root = names[0].partition("/")[0] if names else ""
        places = [name.removeprefix(f"{self._root}/") for name in names]
        for name, place in zip(names, places, strict=True):
            odd = "\\" in name or not {"..", ".", ""}.isdisjoint(name.split("/"))
            if odd or place == name or not _PLACES.fullmatch(place):
                raise Unsafe(
                    f"'{self.name}' was refused unread: it holds '{name[:200]}', which no program of operators and raw tensors "
                    "has (pickles and compiled code are not loaded). Save it with torch.export.save of PyTorch 2.9 or later."
                )
        self.places = frozenset(places)
        self._zip = zipfile.ZipFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def read(self, place: str) -> bytearray:
        """An entry whole. Raises `Invalid` where it is missing or damaged."""
        if place not in self.places:
            raise Invalid(
                f"'{self.name}' has no {place}: it is no program that torch.export.save of PyTorch 2.9 or later wrote."
            )
        try:
            return bytearray(self._zip.read(f"{self._root}/{place}"))
        except UNREADABLE as error:
            raise Invalid(f"'{self.name}' is damaged: {place} cannot be read ({error}).") from error

    def decode(self, place: str, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(self.read(place), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Invalid(f"'{self.name}' is no program that can be served: {error} ({place}).") from error


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor that comes with the program: the value it is in the graph, its name in the module, and where it lies."""

    value: str
    name: str
    place: str
    meta: TensorMeta


@dataclass(frozen=True, slots=True)
class Limit:
    """The sizes that dim `axis` of an input may have, past which the graph is another one."""

    name: str
    axis: int
    low: int
    high: float


@dataclass(frozen=True, slots=True)
class Program:
    """What an archive holds, all of it checked. `takes` and `gives` are the graph's values of the signature's tensors."""

    said: Said
    configs: Mapping[str, Config]
    signature: Signature
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    held: tuple[Held, ...]
    limits: tuple[Limit, ...]


def read(archive: Archive) -> Program:
    """Raises `Unsafe` for what would run code, naming it, `Invalid` for what is no program or takes no rows."""
    for place, mark in MARKS.items():
        if place in archive.places and archive.read(place) != mark:
            raise Invalid(f"'{archive.name}' has another {place} than {mark.decode()}; export it anew with this PyTorch.")
    _check_calls(archive)
    said = archive.decode(MODEL, Said)
    if said.schema_version.major != _MAJOR:
        raise Invalid(f"'{archive.name}' is of version {said.schema_version.major} of torch's schema; expected {_MAJOR}.")
    graph = said.graph_module.graph
    for expression in _expressions(said):
        _check_expression(expression, archive.name)
    configs = {kind: archive.decode(place, Config) for kind, place in CONFIGS.items()}
    for config in configs.values():
        _check_payloads(config, archive)
    held, takes = _inputs(said, configs)
    gives = tuple(_tensor(spec.user_output.arg) for spec in said.graph_module.signature.output_specs)
    if lost := sorted({*takes, *gives} - graph.tensor_values.keys()):
        raise Invalid(f"'{archive.name}' does not hold together: the form of {', '.join(lost)} is not stated.")
    into, out_of = _names(said, takes, len(gives))
    signature = Signature(
        tuple(_spec(name, graph.tensor_values[value]) for name, value in zip(into, takes, strict=True)),
        tuple(_spec(name, graph.tensor_values[value]) for name, value in zip(out_of, gives, strict=True)),
    )
    limits = [_limits(name, graph.tensor_values[value], said) for name, value in zip(into, takes, strict=True)]
    return Program(said, configs, signature, takes, gives, held, tuple(limit for each in limits for limit in each))


def _check_calls(archive: Archive) -> None:
    """Raises before anything else of the graph is read, so that the operator is what is told."""
    for target in archive.decode(MODEL, Calls).targets():
        if target in ARITHMETIC or (_OPERATOR.fullmatch(target) and not _REFUSED.fullmatch(target.split(".")[3])):
            continue
        if target.startswith("torch.ops.higher_order."):
            raise Invalid(
                f"'{archive.name}' calls {target[:200]}, which runs a graph inside the graph: export the module under "
                "torch.no_grad(), without torch.cond, torch.while_loop and torch.autocast."
            )
        raise Unsafe(
            f"'{archive.name}' was refused unread: it calls {target[:200]}; only ATen's operators (torch.ops.aten), those "
            "that open files or check nothing left aside, and arithmetic of sizes are run here."
        )


def _check_payloads(config: Config, archive: Archive) -> None:
    for name, payload in config.config.items():
        if payload.use_pickle or payload.tensor_meta is None:
            raise Unsafe(
                f"'{archive.name}' was refused unread: its tensor '{name[:200]}' is a pickle, which could run code. Export the "
                "module with plain tensors."
            )


def _inputs(said: Said, configs: Mapping[str, Config]) -> tuple[tuple[Held, ...], tuple[str, ...]]:
    """The tensors that come with the program, then the values a caller gives, in the graph's order."""
    module = said.graph_module
    held, takes = [], list[str]()
    if len(module.signature.input_specs) != len(module.graph.inputs):
        raise Invalid("The program does not hold together: its graph and its signature have other inputs.")
    for spec, value in zip(module.signature.input_specs, map(_tensor, module.graph.inputs), strict=True):
        kind, part = only(spec)
        if (_tensor(part.arg) if kind == "user_input" else part.arg.name) != value:
            raise Invalid(f"The program does not hold together: its graph takes '{value}' where its signature has another.")
        if kind == "user_input":
            takes.append(value)
            continue
        name = str(part.parameter_name or part.buffer_name or part.tensor_constant_name)
        where = "weights" if kind == "parameter" or part.persistent else "constants"
        payload: Payload | None = configs[where].config.get(name)
        if payload is None or payload.tensor_meta is None:
            raise Invalid(f"The program's tensor '{name}' is not in its archive: it is damaged, or was saved in parts.")
        held.append(Held(value, name, f"data/{where}/{payload.path_name}", payload.tensor_meta))
    return tuple(held), tuple(takes)


def _tensor(argument: Argument) -> str:
    kind, value = only(argument)
    if kind != "as_tensor":
        raise Invalid(
            "The program takes or gives something besides tensors (numbers, None, text): export it with tensors alone."
        )
    return str(value.name)


def _names(said: Said, takes: tuple[str, ...], outputs: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What inputs and outputs are called: as in the one mapping they come in; else inputs as forward's parameters, and outputs
    'output' or 'output_0', 'output_1', …"""
    calls = said.graph_module.module_call_graph
    if not calls or calls[0].fqn or calls[0].signature is None:
        raise Invalid("The program does not say how it is called: it has no signature of the whole module.")
    given, answer = (_tree(text) for text in (calls[0].signature.in_spec, calls[0].signature.out_spec))
    if len(given.children_spec) != 2 or _leaves(given) != len(takes) or _leaves(answer) != outputs:
        raise Invalid("The program does not hold together: it takes or gives other than its call says.")
    arguments = given.children_spec[0].children_spec
    into = _keys(arguments[0]) if len(arguments) == 1 and not _leaves(given.children_spec[1]) else None
    numbered = ("output",) if answer.type is None else tuple(f"output_{place}" for place in range(outputs))
    if not takes or not outputs:
        raise Invalid("The program takes or gives no tensor.")
    return into or takes, _keys(answer) or numbered


def _tree(text: str) -> Tree:
    try:
        _, tree = msgspec.json.decode(text, type=tuple[int, Tree])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"The program's call is not readable: {error}.") from error
    for part in _parts(tree):
        if part.type is not None and part.type not in _CONTAINERS:
            raise Invalid(f"The program takes or gives a {part.type[:100]}; expected tensors in tuples, lists and dicts alone.")
    return tree


def _parts(tree: Tree) -> Iterator[Tree]:
    left = [tree]  # not by recursion: a file may nest deeper than Python does
    while left:
        part = left.pop()
        yield part
        left += part.children_spec[::-1]


def _leaves(tree: Tree) -> int:
    return sum(part.type is None for part in _parts(tree))


def _keys(tree: Tree) -> tuple[str, ...] | None:
    """Of a mapping of tensors their names; None of anything else."""
    if tree.type != "builtins.dict" or any(child.type is not None for child in tree.children_spec):
        return None
    try:
        keys = msgspec.json.decode(tree.context or "", type=list[str])
    except (msgspec.DecodeError, RecursionError) as error:
        raise Invalid(f"The program's tensors are not named by text: {error}.") from error
    if len({key for key in keys if _NAME.fullmatch(key)}) != len(tree.children_spec) or len(keys) != len(tree.children_spec):
        raise Invalid(f"The program's tensors are named {', '.join(keys)[:200]}; expected one word each.")
    return tuple(keys)


def _spec(name: str, meta: TensorMeta) -> TensorSpec:
    kind = SCALARS.get(meta.dtype, f"type {meta.dtype}")
    if kind not in _DATATYPES:
        raise Invalid(f"'{name}' is a tensor of {kind}; expected one of {', '.join(sorted(_DATATYPES.values()))}.")
    if not meta.sizes:
        raise Invalid(f"'{name}' is a single number; dim 0 of every tensor must be the batch.")
    return TensorSpec(name, _DATATYPES[kind], tuple(_size(size) for size in meta.sizes))


def _size(size: Number) -> int:
    kind, value = only(size)
    return int(value) if kind == "as_int" else -1


def _limits(name: str, meta: TensorMeta, said: Said) -> Iterator[Limit]:
    """Of the dims that are open but not for every size. Raises `Invalid` where the batch is."""
    for axis, size in enumerate(meta.sizes):
        kind, value = only(size)
        if kind == "as_int":
            continue
        symbol = _SYMBOL.fullmatch(value.expr_str) if kind == "as_expr" else None
        found = said.range_constraints.get(symbol[1] or symbol[2]) if symbol else None
        low, high = (found.min_val, found.max_val) if found else (None, None)
        least, most = 0 if low is None or low <= 2 else low, math.inf if high is None else high  # torch's own least is 2
        if axis == 0 and (symbol is None or least or most < math.inf):
            bounds = f"at least {least} rows" if most == math.inf else f"{least} to {most} rows"
            some = "a number of rows that follows from another" if symbol is None else bounds
            raise Invalid(f"'{name}' takes {some} alone: export it with Dim.DYNAMIC, and no branch on how many rows there are.")
        if axis and (least or most < math.inf):
            yield Limit(name, axis, least, most)


def _expressions(said: Said) -> Iterator[str]:
    graph = said.graph_module.graph
    sizes = [size for meta in graph.tensor_values.values() for size in (*meta.sizes, *meta.strides, meta.storage_offset)]
    for number in (*sizes, *graph.sym_int_values.values(), *graph.sym_bool_values.values(), *graph.sym_float_values.values()):
        if number.as_expr is not msgspec.UNSET:
            yield number.as_expr.expr_str


def _check_expression(text: str, name: str) -> None:
    """torch evaluates a size as Python: raises `Unsafe` where it is more than arithmetic of symbols."""
    plain = re.sub(r"'[a-z]{1,4}[0-9]+'", "0", text)  # what a symbol is called
    known = all(_WORDS.fullmatch(word) for word in re.findall(r"[A-Za-z_][A-Za-z0-9_]*", plain))
    endless = "**" in plain or re.search("[0-9]{20}", plain) or _towers(plain)
    if len(text) > _LONGEST or not known or endless or not re.fullmatch(r"(?:[A-Za-z0-9_ +\-*/(),=<>%]|\.(?=[0-9]))*", plain):
        raise Unsafe(f"'{name}' was refused unread: it gives '{text[:100]}' as a size, which is no arithmetic.")


def _towers(text: str) -> bool:
    """Whether a power is of a power: nobody waits for what that comes to."""
    depth, powers = 0, list[int]()
    for part in re.findall(r"(?:Pow|PowByNatural|FloatPow)\(|[()]", text):
        if part == ")":
            powers = [at for at in powers if at != depth]
            depth -= 1
            continue
        depth += 1
        if part != "(":
            powers.append(depth)
        if len(powers) > 1:
            return True
    return False
