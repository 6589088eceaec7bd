"""The card people read: README.md of a model version, in Hugging Face's form (YAML front matter, then Markdown).
Written for imported and optimised versions; `model.json` is what machines read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.engines.base import ModelCard
from modelyard.tensors import TensorSpec

NAME = "README.md"
_LIBRARIES = {"genai": "gguf", "onnx": "onnx", "transformers": "transformers"}  # by the best engine

_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
outputs = session.run(None, {{{feeds}}})
"""
_TORCH = """\
import torch
from {module} import {name}

model = {name}(**{arguments})
model.load_state_dict({load})
outputs = model.eval()({feeds})
"""
_PT2 = """\
import torch

program = torch.export.load("{file}").module()
outputs = program({{{feeds}}})
"""
_TRANSFORMERS = """\
from transformers import {kind}

model = {kind}.from_pretrained(".")
"""
_GGUF = """\
import openvino_genai

model = openvino_genai.LLMPipeline("{file}", "CPU")
print(model.generate("Once upon a time", max_new_tokens=40))
"""
_KINDS = {
    "summarization": "AutoModelForSeq2SeqLM",
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
    "image-classification": "AutoModelForImageClassification",
    "translation": "AutoModelForSeq2SeqLM",
}


def write(folder: Path, card: ModelCard, title: str, text: str, metrics: Mapping[str, float] | None = None) -> None:
    """README.md in `folder`: front matter with the task and `metrics`, `text`, the tensors, and how to run it by hand."""
    parts = [_front(card, title, metrics or {}), f"# {title}\n", text.strip() + "\n", _tensors(card)]
    parts += [f"## By hand\n\n```python\n{code}```\n" for code in _examples(card)]
    (folder / NAME).write_text("\n".join(parts))


def _front(card: ModelCard, title: str, metrics: Mapping[str, float]) -> str:
    """Values are JSON, which YAML reads as it is."""
    facts: dict[str, Any] = {
        "pipeline_tag": card.task,
        "library_name": _LIBRARIES.get(card.engines[0], "pytorch"),
        "tags": ["modelyard"],
    }
    if metrics:
        measured = [{"type": name, "value": value} for name, value in metrics.items()]
        facts["model-index"] = [{"name": title, "results": [{"task": {"type": card.task}, "metrics": measured}]}]
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in facts.items()), "---\n"])


def _tensors(card: ModelCard) -> str:
    rows = [("input", spec) for spec in card.signature.inputs] + [("output", spec) for spec in card.signature.outputs]
    lines = [f"| {kind} | `{spec.name}` | {spec.datatype} | {_shape(spec)} |" for kind, spec in rows]
    labels = f"\nLabels: {', '.join(card.labels)}.\n" if card.labels else ""
    return "\n".join(["## Tensors\n", "| | name | datatype | shape |", "|---|---|---|---|", *lines, labels])


def _shape(spec: TensorSpec) -> str:
    return "unknown" if spec.shape is None else str(list(spec.shape))


def _examples(card: ModelCard) -> list[str]:
    made = [_TRANSFORMERS.format(kind=_KINDS.get(card.task, "AutoModel"))] if "transformers" in card.engines else []
    if "gguf" in card.files:
        made.append(_GGUF.format(file=card.files["gguf"]))
    if "onnx" in card.files:
        feeds = ", ".join(f'"{spec.name}": {spec.name}' for spec in card.inputs)
        made.append(_ONNX.format(file=card.files["onnx"], feeds=feeds))
    if "pt2" in card.files:
        feeds = ", ".join(f'"{spec.name}": {spec.name}' for spec in card.inputs)
        made.append(_PT2.format(file=card.files["pt2"], feeds=feeds))
    if card.module and "weights" in card.files:
        file = card.files["weights"]
        safe = file.endswith(".safetensors")
        load = f'safetensors.torch.load_file("{file}")' if safe else f'torch.load("{file}", weights_only=True)'
        facts = {"module": Path(card.module.file).stem, "name": card.module.name, "arguments": card.module.arguments}
        code = _TORCH.format(**facts, load=load, feeds=", ".join(spec.name for spec in card.inputs))
        made.append(code.replace("import torch\n", "import safetensors.torch\n", 1) if safe else code)
    return made
