"""The job kind `import-model`: a model from elsewhere becomes a version. ONNX graphs, LiteRT files and Hugging Face folders
come as they are, programs of torch.export without what torch would run of them; PyTorch weights come with the source of their
module, and where their inputs are stated they are converted to ONNX besides.

Runs inside the sandbox, and still opens nothing that could run code but the module's source, which is the user's to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from modelyard.conversion.config import ImportModelConfig
from modelyard.conversion.readme import write as write_readme
from modelyard.engines.base import ModelCard
from modelyard.engines.files import inside
from modelyard.errors import Invalid
from modelyard.kinds import Input, JobContext, Outputs
from modelyard.plugins import Registry


class Importer(Protocol):
    """Reads one format."""

    def __call__(
        self, config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
    ) -> tuple[ModelCard, dict[str, Any]]:
        """Check `path`, a file of the folder `upload`, copy what the version needs into `out`, and try it. Returns its card and
        facts for the version's metadata; the fact 'notes' is sentences for its README."""
        ...


IMPORTERS: Registry[Importer] = Registry(
    "importer",
    {
        "litert": "modelyard.conversion.from_litert:read",
        "onnx": "modelyard.conversion.from_onnx:read",
        "pt2": "modelyard.conversion.from_pt2:read",
        "torch": "modelyard.conversion.from_torch:read",
        "huggingface": "modelyard.conversion.from_huggingface:read",
    },
)
FOLDER = "config.json"  # what a Hugging Face folder is known by
ENDINGS = {".onnx": "onnx", ".pt2": "pt2", ".tflite": "litert", ".pth": "torch", ".pt": "torch", ".safetensors": "torch"}


def run(config: ImportModelConfig, inputs: Mapping[str, Input], outputs: Outputs, context: JobContext) -> None:
    """Publishes the version as output 'model'. Raises `Unsafe` for files that could run code or reach outside, `Invalid` for
    what cannot be served."""
    upload = inputs["files"].view.local()
    files = inputs["files"].view.files
    path = inside(upload, config.file or (FOLDER if is_folder(files) and not config.module else only_model(files)))
    kind = "huggingface" if path.name == FOLDER else ENDINGS.get(path.suffix)
    if kind is None:
        raise Invalid(f"'{path.name}' is of no known kind; expected one of {', '.join(ENDINGS)}, or a Hugging Face folder.")
    out = context.work / "model"
    out.mkdir()
    context.progress(0, 2)
    card, facts = IMPORTERS.get(kind)(config, path, upload, out, context)
    context.check()
    context.progress(1, 2)
    notes = facts.pop("notes")
    for note in notes:
        context.log(note)
    card.save(out)
    title = str(facts.get("architecture", path.stem))
    source = config.source or path.name
    write_readme(out, card, title, " ".join([f"Imported from `{source}`.", *notes]))
    outputs.publish("model", out, task=card.task, metadata={"source": source, **describe_metadata(card), **facts})
    context.progress(2, 2)


def describe_metadata(card: ModelCard) -> dict[str, Any]:
    """What the catalogue keeps of a card."""
    signature = card.signature
    return {
        "engines": list(card.engines),
        "inputs": [spec.to_json() for spec in signature.inputs],
        "outputs": [spec.to_json() for spec in signature.outputs],
        "labels": list(card.labels) if card.labels else None,
    }


def is_folder(files: Mapping[str, int]) -> bool:
    """Whether these files are a Hugging Face model rather than bare weights."""
    return FOLDER in files and any(PurePosixPath(name).suffix == ".safetensors" for name in files)


def only_model(files: Mapping[str, int]) -> str:
    """The one file of a known ending. Raises `Invalid` where there is none or a choice."""
    found = sorted(name for name in files if PurePosixPath(name).suffix in ENDINGS)
    if len(found) == 1:
        return found[0]
    there = f"there are {', '.join(found)}: name one as file" if found else f"there are {', '.join(sorted(files)) or 'none'}"
    raise Invalid(f"Expected one model file ({', '.join(ENDINGS)}); {there}.")
