"""PyTorch → a program of torch.export (`model.pt2`), for the engine `pt2`: the module's own operators and weights, without its
source. Called through `CONVERTERS`; whoever converts also verifies.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec.structs import replace
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from modelyard.conversion.base import first_line, fixed_rows
from modelyard.conversion.cards import tensor_cards
from modelyard.conversion.tracing import few, open_dims, place, quiet
from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.programs import CONFIGS, EXAMPLES, MARKS, MODEL, Archive, Program, read
from modelyard.engines.pt2 import Pt2Engine
from modelyard.engines.schema import Call, CallSignature, Config, Said, Tree
from modelyard.engines.torch import in_order, load_module
from modelyard.errors import Invalid
from modelyard.tensors import Array

FILE = "model.pt2"
_GIVEN = "given"
_HELD = re.compile(rf"L\['{_GIVEN}'\]\['(?P<name>[^']+)'\]\.size\(\)\[(?P<axis>\d+)\].*?constant \((?P<size>\d+)\)", re.DOTALL)
_ROOT, _ZIP_VERSION = "model", b"6\n"


class ProgramConverter:
    """`module` + `weights` → `model.pt2` and its card; dims stated as -1 stay open."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        if card.module is None:
            raise Invalid(
                "torch.export is made of a PyTorch module, and this version has none: convert the one it was exported from."
            )
        module = load_module(folder, card)
        rows = {spec.name: few(samples[spec.name], fixed_rows(card.signature)) for spec in card.inputs}
        exported = _exported(module, card, rows, inside(folder, card.module.file))
        with tempfile.TemporaryDirectory() as work, quiet():
            torch.export.save(exported, Path(work) / FILE)
            signature = tidy(Path(work) / FILE, out / FILE).signature
        made = ModelCard(
            task=card.task,
            engines=("pt2",),
            files={"pt2": FILE},
            inputs=tensor_cards(signature.inputs),
            outputs=tensor_cards(signature.outputs),
            transform=card.transform,
            labels=card.labels,
        )
        made.save(out)
        steady(Pt2Engine(out, made), rows)
        return made


CONVERTER = ProgramConverter()


def tidy(source: Path, target: Path) -> Program:
    """Write the program in `source` as this platform keeps it: what is read as data, and nothing else. Traces with their paths,
    guards, example inputs and extra files are left out; its tensors are taken and given by name. Raises as `read` does."""
    with Archive(source) as archive, zipfile.ZipFile(target, "w") as made:
        program = read(archive)
        held = {each.place for each in program.held}
        configs = {kind: _of_held(config, kind, held) for kind, config in program.configs.items()}
        entries = {
            MODEL: msgspec.json.encode(_plain(program)),
            **{place: msgspec.json.encode(configs[kind]) for kind, place in CONFIGS.items()},
            **MARKS,
            ".data/version": _ZIP_VERSION,
            EXAMPLES: b"",
        }
        for name, content in entries.items():
            made.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}"), content)
        for name in sorted(held):
            made.writestr(zipfile.ZipInfo(f"{_ROOT}/{name}"), archive.read(name))
    return program


def _of_held(config: Config, kind: str, places: Collection[str]) -> Config:
    """Without what the graph takes nothing of, which nobody has checked."""
    return replace(
        config, config={name: one for name, one in config.config.items() if f"data/{kind}/{one.path_name}" in places}
    )


def steady(engine: Pt2Engine, rows: Mapping[str, Array]) -> None:
    """Raises `Invalid` where a program writes into its own tensors: an answer would follow from others' calls."""
    if changed := [name.removeprefix("module.") for name in engine.changes(rows)]:
        raise Invalid(
            f"The program writes into its own {', '.join(changed[:5])} at each call, so that an answer follows from "
            "the calls before it: export it in eval mode, and without state."
        )


def _plain(program: Program) -> Said:
    said = program.said
    graph = said.graph_module.graph
    given, answer = (_mapping([spec.name for spec in specs]) for specs in (program.signature.inputs, program.signature.outputs))
    call = _tree("tuple", "null", [_tree("tuple", "null", [given]), _mapping([])])
    signature = CallSignature(
        inputs=[], outputs=[], in_spec=_written(call), out_spec=_written(answer), forward_arg_names=[_GIVEN]
    )
    module = replace(
        said.graph_module,
        graph=replace(graph, nodes=[replace(node, metadata={}) for node in graph.nodes]),
        module_call_graph=[Call(fqn="", signature=signature)],
    )
    return replace(said, graph_module=module)


def _tree(kind: str, context: str, children: list[Tree]) -> Tree:
    return Tree(type=f"builtins.{kind}", context=context, children_spec=children)


def _mapping(names: list[str]) -> Tree:
    leaves = [Tree(type=None, context=None, children_spec=[]) for _ in names]
    return _tree("dict", msgspec.json.encode(names).decode(), leaves)


def _written(tree: Tree) -> str:
    return msgspec.json.encode([1, tree]).decode()


class _Named(nn.Module):
    """A module whose tensors go by the card's names, in and out."""

    def __init__(self, module: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.module = module
        self._inputs, self._outputs = [spec.name for spec in card.inputs], [spec.name for spec in card.outputs]

    def forward(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        result = self.module(*(given[name] for name in self._inputs))
        return dict(zip(self._outputs, in_order(result, self._outputs), strict=True))


def _exported(module: nn.Module, card: ModelCard, rows: Mapping[str, Array], source: Path) -> Any:
    given = {name: torch.from_numpy(array) for name, array in rows.items()}
    dims = {spec.name: open_dims(spec.shape, given[spec.name].ndim) for spec in card.inputs}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(_Named(module, card).eval(), (given,), dynamic_shapes={_GIVEN: dims})
    except Exception as error:
        raise Invalid(f"{type(module).__name__} cannot be exported: {_reason(error, source, module)}") from error


def _reason(error: Exception, source: Path, module: nn.Module) -> str:
    """In one line, in the user's words: the exporter's own message is a page."""
    if held := _HELD.search(str(error)):
        return (
            f"dim {held['axis']} of input '{held['name']}' is open, but forward holds it at {held['size']} "
            "(look for view, reshape or flatten with that number, and for what is counted in Python)."
        )
    where = place(error, source, module)
    if isinstance(error, GuardOnDataDependentSymNode):
        return (
            f"forward decides by the values of its input{f' ({where})' if where else ''}; use torch.where, or decide outside."
        )
    return f"{first_line(error)}{f' ({where})' if where else ''}"
