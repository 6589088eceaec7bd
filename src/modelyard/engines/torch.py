"""Runs a model version as the PyTorch module it was trained as. Also the one place where a module's source and weights become a
module again, for training that goes on, for conversion and for verification.

The source is a user's own code: whoever calls this is in a sandbox. The weights are data and are treated as such.
"""

from __future__ import annotations

import itertools
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from modelyard.engines.base import ModelCard, ModuleCard
from modelyard.engines.files import inside
from modelyard.engines.pickles import check_pickle
from modelyard.errors import Internal, Invalid, Unsafe
from modelyard.tensors import Array, Signature

SOURCES = "modelyard_source_"  # what modules of users' source files are named, and numbered
_numbers = itertools.count()
_LONGEST = 400  # characters of a module's own message


class TorchEngine:
    """A `BatchEngine` over `card.module` and `card.files['weights']`: eval, inference mode, forward's arguments in the card's
    order. Raises `Unsafe` for weights with code in them, `Invalid` where source, class, arguments or weights don't fit."""

    def __init__(self, folder: Path, card: ModelCard, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._hold(load_module(folder, card), card)

    @classmethod
    def of(cls, module: nn.Module, card: ModelCard) -> TorchEngine:
        """Over a module in memory, in eval mode, with the tensors of `card`: what a step of optimisation made of a version."""
        engine = cls.__new__(cls)
        engine._hold(module.eval(), card)
        return engine

    def _hold(self, module: nn.Module, card: ModelCard) -> None:
        self._module = module
        self._signature = card.signature
        self._inputs = [spec.name for spec in card.inputs]
        self._outputs = [spec.name for spec in card.outputs]

    @property
    def signature(self) -> Signature:
        return self._signature

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        with torch.inference_mode():
            # torch.tensor copies: the module may write in place, and the batch is not ours.
            result = self._run([torch.tensor(batch[name]) for name in self._inputs])
        # Copies: the module may write into what it gave again, for the next batch, while this one's answers are encoded.
        return {name: value.numpy().copy() for name, value in zip(self._outputs, in_order(result, self._outputs), strict=True)}

    def _run(self, arguments: Sequence[torch.Tensor]) -> Any:
        """Where the shape of inputs is unknown nobody could check it before the module does: what it says of it is told."""
        try:
            return self._module(*arguments)
        except RuntimeError as error:
            if all(spec.shape is not None for spec in self._signature.inputs):
                raise
            given = ", ".join(f"{n} {list(a.shape)}" for n, a in zip(self._inputs, arguments, strict=True))
            reason = str(error).strip().partition("\n")[0][:_LONGEST]
            raise Invalid(f"The model does not take {given}: {reason}") from error

    def close(self) -> None:
        del self._module


def load_module(folder: Path, card: ModelCard) -> nn.Module:
    """The version's module with its weights, in eval mode on the CPU. Raises as `TorchEngine` does."""
    if card.module is None or "weights" not in card.files:
        raise Invalid("model.json states no module and weights: the engine 'torch' cannot run this version.")
    module = build_module(folder, card.module)
    fill(module, read_weights(inside(folder, card.files["weights"])))
    return module.eval()


def build_module(folder: Path, card: ModuleCard) -> nn.Module:
    """A fresh instance of the class the card names. Raises `Invalid` where there is none or its arguments don't fit."""
    cls = load_class(inside(folder, card.file), card.name)
    try:
        return cls(**card.arguments)
    except TypeError as error:
        raise Invalid(f"{card.file}:{card.name} cannot be built with the arguments {card.arguments}: {error}.") from error


def load_class(path: Path, name: str) -> type[nn.Module]:
    """Run a user's source file as a module of its own and return its class. Leaves no bytecode beside the file."""
    loader = _Source(f"{SOURCES}{next(_numbers)}_{path.stem}", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    source = module_from_spec(spec)
    sys.modules[loader.name] = source
    try:
        loader.exec_module(source)
    except (SyntaxError, ImportError) as error:
        raise Invalid(f"'{path.name}' cannot be run: {error}.") from error
    cls = getattr(source, name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        there = ", ".join(n for n, v in vars(source).items() if isinstance(v, type) and issubclass(v, nn.Module))
        raise Invalid(f"'{path.name}' defines no torch.nn.Module '{name}'; it defines {there or 'none'}.")
    return cls


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name from a .safetensors file or a `state_dict` saved by torch. Raises `Unsafe` where it holds more."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise Invalid(f"'{path.name}' is not a safetensors file: {error}.") from error
    check_pickle(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Unsafe(
            f"'{path.name}' was refused: it holds more than weights. Save weights alone: torch.save(model.state_dict(), path)."
        ) from error
    except (RuntimeError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise Invalid(f"'{path.name}' is not a file saved by torch: {error}.") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        there = (
            f"a dict with {', '.join(map(str, list(weights)[:5]))}" if isinstance(weights, Mapping) else type(weights).__name__
        )
        raise Invalid(f"'{path.name}' holds {there}; expected a state_dict: names to tensors.")
    return dict(weights)


def fill(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Load weights strictly; of tensors that are one (tied), one is enough, as safetensors' `save_model` keeps them. Raises
    `Invalid` listing what is missing, unexpected or of another shape."""
    own = module.state_dict()
    there = {_storage(own[name]) for name in own.keys() & weights.keys() if _is_whole(own[name])}
    missing = sorted(name for name in own.keys() - weights.keys() if _storage(own[name]) not in there)
    unexpected = sorted(weights.keys() - own.keys())
    shapes = [
        f"{name} {tuple(weights[name].shape)} for {tuple(own[name].shape)}"
        for name in own.keys() & weights.keys()
        if weights[name].shape != own[name].shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": sorted(shapes)}
    said = "; ".join(f"{what}: {', '.join(names[:10])}" for what, names in wrong.items() if names)
    if said:
        raise Invalid(f"The weights are not those of {type(module).__name__}: {said}.")
    module.load_state_dict(weights, strict=False)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether nothing of its memory is another tensor's alone. Tensors without memory all lie at 0."""
    return bool(_storage(tensor)) and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def in_order(result: Any, names: Sequence[str]) -> list[torch.Tensor]:
    """A forward's result as one tensor per output name: a tensor, a sequence in order, a mapping by name or in order. What is
    no tensor (None, a tuple of states) is left out."""
    if isinstance(result, torch.Tensor):
        values = [result]
    elif isinstance(result, Mapping):
        values = [result[name] for name in names] if set(names) <= result.keys() else _tensors(result.values())
    else:
        values = _tensors(result)
    if len(values) != len(names):
        raise Internal(f"The module gives {len(values)} outputs; model.json states {len(names)}: {', '.join(names)}.")
    return values


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    return [value for value in values if isinstance(value, torch.Tensor)]


class _Source(SourceFileLoader):
    """Compiles from source each time: artefacts are read-only, and a cached bytecode file would be one more thing to trust."""

    def get_code(self, fullname: str) -> CodeType | None:
        return self.source_to_code(self.get_data(self.path), self.path)
