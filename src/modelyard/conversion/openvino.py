"""ONNX → OpenVINO IR; a PyTorch module goes by way of ONNX. Called through `CONVERTERS`; whoever converts also verifies.

OpenVINO reads the graph by its own reader, which runs no Python and calls nobody. Weights stay in float32.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openvino as ov  # type: ignore[import-untyped]

from modelyard.conversion import onnx
from modelyard.conversion.cards import tensor_cards
from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.engines.openvino import read, reason, signature_of
from modelyard.errors import Invalid
from modelyard.tensors import Array

FILE = "model.xml"
# Notes about the machine and the moment, which make the same model other bytes.
_NOTES = re.compile(r"\s*<rt_info>\s*(?:<(?!/?rt_info)[^>]*>\s*)*</rt_info>(?=\s*</net>)")


class OpenVinoConverter:
    """A version's ONNX graph, or its `module` + `weights`, → `model.xml`, `model.bin` and their card."""

    def convert(self, folder: Path, card: ModelCard, out: Path, samples: Mapping[str, Array]) -> ModelCard:
        with tempfile.TemporaryDirectory() as work:
            if "onnx" in card.files:
                path = inside(folder, card.files["onnx"])
            else:
                onnx.CONVERTER.convert(folder, card, Path(work), samples)
                path = Path(work) / onnx.FILE
            model = read(path)
            signature = signature_of(model)
            _name(model)
            try:
                ov.save_model(model, out / FILE, compress_to_fp16=False)
            except RuntimeError as error:
                raise Invalid(f"OpenVINO cannot write '{path.name}' as IR: {reason(error, path)}") from error
        text = (out / FILE).read_text()
        (out / FILE).write_text(_NOTES.sub("", text))
        made = ModelCard(
            task=card.task,
            engines=("openvino",),
            files={"openvino": FILE},
            inputs=tensor_cards(signature.inputs),
            outputs=tensor_cards(signature.outputs),
            transform=card.transform,
            labels=card.labels,
        )
        made.save(out)
        return made


def _name(model: Any) -> None:
    """Number the nodes that the reader made up: by itself it goes on counting from model to model."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


CONVERTER = OpenVinoConverter()
