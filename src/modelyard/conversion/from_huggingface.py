"""Imports a Hugging Face folder: config.json, weights in safetensors, a tokenizer or an image processor. It is taken as it is,
so that plain transformers loads the version; its own code, pickles and whatever else lies there are left out.

`importing` calls it where an upload has a config.json beside safetensors. What is made is the base of fine-tuning; an encoder
of texts gets an ONNX graph besides, with which it is served, and so does what generates texts: a decoder where it is asked for,
an encoder-decoder always.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from modelyard.conversion import sentences
from modelyard.conversion.config import ImportModelConfig
from modelyard.engines.base import ModelCard, TensorCard
from modelyard.engines.files import inside
from modelyard.engines.huggingface import COMPANIONS, CONFIG, open_model
from modelyard.errors import Invalid, Unsafe
from modelyard.kinds import JobContext
from modelyard.plugins import load

_INDEX = "model.safetensors.index.json"
# What a class of transformers is named by its end → task, the class that opens it.
_PAIR = ("translation", "AutoModelForSeq2SeqLM")
TASKS = {
    "ForConditionalGeneration": _PAIR,
    "MTModel": _PAIR,
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "LMHeadModel": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
    "ForImageClassification": ("image-classification", "AutoModelForImageClassification"),
    "Model": ("feature-extraction", "AutoModel"),
}


def read(
    config: ImportModelConfig, path: Path, upload: Path, out: Path, context: JobContext
) -> tuple[ModelCard, dict[str, Any]]:
    """`path` is the folder's config.json: what lies elsewhere in the upload is not read. Raises `Invalid` for a class that
    transformers does not have, for weights that are not its own, and for answers that are no numbers; `Unsafe` for an index
    that names files of another kind than safetensors."""
    if config.module or config.arguments or config.inputs or config.transform or config.labels:
        raise Invalid(
            "A Hugging Face folder says itself what it is: leave out module, arguments, inputs, labels and transform."
        )
    said = _said(path)
    task, kind = _task(said)
    pair = (task, kind) == _PAIR
    if pair and config.task == "summarization":
        task = config.task
    if config.task not in (None, task):
        raise Invalid(f"{CONFIG} says {said['architectures'][0]}, which is for {task}, not for {config.task}.")
    if config.onnx and not pair and task != "text-generation":
        raise Invalid(f"{said['architectures'][0]} generates no text: onnx is for language models; leave it out.")
    left = _copy(path.parent, upload, out)
    context.check()
    model = _open(out, kind)
    notes = [f"Left out, as nothing here reads it: {', '.join(left[:10])}."] if left else []
    labels = _labels(said) if task.endswith("-classification") else None
    parameters = sum(parameter.numel() for parameter in model.parameters())
    facts = {"format": "huggingface", "architecture": said["architectures"][0], "parameters": parameters}
    card = _card(task, out, labels)
    if pair or config.onnx:
        card, more = load("modelyard.conversion.decoders:add")(card, model, out, context)
    elif task == "feature-extraction":
        card, more = _with_onnx(card, model, out, context)
    else:
        return card, {**facts, "notes": notes}
    return card, {**facts, **more, "notes": [*more["notes"], *notes]}


def _with_onnx(card: ModelCard, model: Any, out: Path, context: JobContext) -> tuple[ModelCard, dict[str, Any]]:
    """The card with a graph to serve and what is known of it; as it is, saying why, where there can be none."""
    try:
        made: tuple[ModelCard, dict[str, Any]] = load("modelyard.conversion.encoders:convert")(card, model, out, context)
    except Unsafe:
        raise
    except Invalid as error:
        return card, {"notes": [f"It has no ONNX form, so nothing serves it; it is a base for fine-tuning. {error.message}"]}
    return made


def _said(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_bytes())
    except ValueError as error:
        raise Invalid(f"{CONFIG} is not JSON: {error}.") from error
    named = said.get("architectures") if isinstance(said, dict) else None
    if not (isinstance(named, list) and named and isinstance(named[0], str)):
        raise Invalid(f"{CONFIG} names no architecture; expected one as save_pretrained writes it, such as LlamaForCausalLM.")
    if "auto_map" in said:
        raise Invalid(f"{named[0]} brings code of its own (auto_map), which is never run; use a class that transformers has.")
    if "quantization_config" in said:
        raise Invalid("The weights are quantised; a base for fine-tuning has plain ones: save it without quantization_config.")
    return dict(said)


def _task(said: Mapping[str, Any]) -> tuple[str, str]:
    name = said["architectures"][0]
    for end, found in TASKS.items():
        if name.endswith(end):
            return found
    raise Invalid(
        f"{name} is for no task that can be trained or served here; expected a class that ends in {', '.join(TASKS)}."
    )


def _copy(folder: Path, upload: Path, out: Path) -> list[str]:
    """Copy what belongs to the model in `folder`; returns the names of the rest of the upload."""
    names = _names(folder)
    weights = {_INDEX, *_shards(inside(folder, _INDEX))} if _INDEX in names else {"model.safetensors"}
    wanted = {CONFIG, *COMPANIONS, *weights, *filter(sentences.KEPT.fullmatch, names)}
    for name in sorted(weights):
        inside(folder, name)  # raises `Invalid` where it is missing, `Unsafe` where it lies outside
    for name in names:
        if name in wanted:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(inside(folder, name), out / name)
    known = {folder / name for name in (*wanted, "README.md", "model.json")}
    return [name for name in _names(upload) if upload / name not in known]


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _shards(path: Path) -> set[str]:
    """The files that an index names. Raises `Unsafe` where one is no safetensors: transformers would unpickle it."""
    try:
        found = set(json.loads(path.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"{_INDEX} is not one: {error}.") from error
    if not all(isinstance(name, str) for name in found):
        raise Invalid(f"{_INDEX} is not one: expected under weight_map the name of a file for each weight.")
    if odd := sorted(name for name in found if not name.endswith(".safetensors")):
        raise Unsafe(f"{_INDEX} names {', '.join(odd[:3])}; weights are read from files that end in .safetensors alone.")
    return found


def _open(folder: Path, kind: str) -> Any:
    """The model, once every weight of it is found."""
    model, wrong = open_model(folder, kind)
    if wrong:
        said = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in wrong.items())
        raise Invalid(f"The weights are not those of {type(model).__name__}: {said}.")
    odd = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if odd is not None:
        raise Invalid(f"The weight '{odd}' holds NaN or infinity.")
    return model


def _labels(said: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = said.get("id2label")
    return tuple(str(names[key]) for key in sorted(names, key=int)) if isinstance(names, dict) and names else None


def _card(task: str, out: Path, labels: tuple[str, ...] | None) -> ModelCard:
    """What transformers takes and gives."""
    images = task == "image-classification"
    taken = ("pixel_values", "FP32", None) if images else ("input_ids", "INT64", (-1, -1))
    given = "last_hidden_state" if task == "feature-extraction" else "logits"
    weights = _INDEX if (out / _INDEX).is_file() else "model.safetensors"
    files = {"config": CONFIG, "weights": weights}
    for role, name in (("tokenizer", "tokenizer.json"), ("processor", "preprocessor_config.json")):
        files |= {role: name} if (out / name).is_file() else {}
    name, datatype, shape = taken
    return ModelCard(
        task=task,
        engines=("transformers",),
        files=files,
        inputs=(TensorCard(name=name, datatype=datatype, shape=shape),),
        outputs=(TensorCard(name=given, datatype="FP32", shape=None),),
        labels=labels,
    )
