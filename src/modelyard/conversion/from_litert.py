"""Imports a LiteRT file (`.tflite`): its signature read from it, copied, and tried."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from modelyard.conversion.base import check_rows, try_out
from modelyard.conversion.cards import describe
from modelyard.conversion.config import ImportModelConfig
from modelyard.engines.base import ModelCard
from modelyard.engines.litert import ERRORS, LiteRtEngine, opened, signature_of
from modelyard.errors import Invalid
from modelyard.kinds import JobContext

FILE = "model.tflite"


def read(
    config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """Raises `Invalid` for what LiteRT refuses, what has no batch first, or rows that follow from each other."""
    if config.module or config.arguments or config.inputs:
        raise Invalid("A .tflite file states its own inputs: leave out module, arguments and inputs.")
    shutil.copyfile(path, out / FILE)
    signature = signature_of(opened(out / FILE, 1), path.name)
    card = describe(config, signature, engines=("litert",), files={"litert": FILE})
    forward = LiteRtEngine(out, card).forward
    if (tried := try_out(forward, signature, ERRORS)) is not None:
        check_rows(forward, signature, *tried, ERRORS)
    return card, {"format": "litert", "notes": []}
