"""Imports a program of torch.export (`.pt2`): read as data, written anew without what torch would run of it, tried, and held
against torch's own loader. Loaded late: it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelyard.conversion.base import check_rows, first_line, try_out, verify
from modelyard.conversion.cards import describe
from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.pt2 import FILE, steady, tidy
from modelyard.conversion.tracing import quiet
from modelyard.engines.base import ModelCard
from modelyard.engines.pickles import check_pickle
from modelyard.engines.programs import EXAMPLES, Archive
from modelyard.engines.pt2 import ERRORS, Pt2Engine
from modelyard.errors import Invalid
from modelyard.kinds import JobContext
from modelyard.tensors import Array, Signature


def read(
    config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """Raises `Unsafe` for what would run code if torch opened it, `Invalid` for what is no program or cannot be served."""
    if config.module or config.arguments or config.inputs:
        raise Invalid("A .pt2 file states its own inputs: leave out module, arguments and inputs.")
    _check_examples(path, context.work)
    signature = tidy(path, out / FILE).signature
    card = describe(config, signature, engines=("pt2",), files={"pt2": FILE})
    engine = Pt2Engine(out, card)
    failures = (*ERRORS, Invalid)
    tried = try_out(engine.forward, signature, failures)
    if tried is None:
        raise Invalid(
            f"'{path.name}' ran with none of the sizes tried for its open dims, so that nothing shows what it answers."
        )
    steady(engine, tried[0])
    check_rows(engine.forward, signature, *tried, failures)
    reference = _Reference(out / FILE, signature)
    try:
        found = verify(reference, engine, tried[0], keep=context.work)
    except Invalid as error:
        raise Invalid(
            f"'{path.name}' does not answer as torch's own loader has it answer; was it exported in eval mode? {error.message}"
        ) from error
    note = f"It answers as torch's own loader has it answer: greatest difference {found.max_abs:.2g} over {found.rows} rows."
    return card, {"format": "pt2", "verification": found.to_json(), "notes": [note]}


def _check_examples(path: Path, work: Path) -> None:
    """The inputs it was exported with are a pickle, which is left out. One that would run code says whose file this is."""
    with Archive(path) as archive:
        content = archive.read(EXAMPLES) if EXAMPLES in archive.places else b""
    if content:
        kept = work / "sample_inputs.pt"
        kept.write_bytes(content)
        check_pickle(kept)


class _Reference:
    """The program that was written here, as torch loads and runs it: a `BatchEngine` to compare with."""

    def __init__(self, path: Path, signature: Signature) -> None:
        self.signature = signature
        try:
            with quiet():
                self._module = torch.export.load(path).module()
        except Exception as error:
            raise Invalid(f"PyTorch {torch.__version__} does not load the program: {first_line(error)}") from error

    def forward(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        try:
            with torch.inference_mode():
                found = self._module({name: torch.tensor(array) for name, array in batch.items()})
        except Exception as error:
            raise Invalid(f"torch's own loader does not take these rows: {first_line(error)}") from error
        return {name: value.numpy() for name, value in found.items()}

    def close(self) -> None:
        del self._module
