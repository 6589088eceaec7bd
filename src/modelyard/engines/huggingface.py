"""Hugging Face's libraries behind one door: told to ask nobody, to run nothing that lies in a folder and to read no pickles.

The import of models, fine-tuning and (later) an engine come through here. A folder is one that `save_pretrained` writes:
config.json, safetensors, the files of a tokenizer or an image processor.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelyard.engines.files import inside
from modelyard.errors import Invalid

CONFIG, GENERATION = "config.json", "generation_config.json"
PAPERS = tuple(name + end for name in ("LICENSE", "NOTICE") for end in ("", ".txt", ".md"))
# What goes from a base to what is made of it, beside the weights and their config.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    GENERATION,
    "preprocessor_config.json",
    *PAPERS,
)
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",  # of the reader of GGUF
}
_REFUSALS = (AssertionError, ImportError, IndexError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_LONGEST = 300  # characters of a library's own message


@contextmanager
def hub() -> Iterator[Any]:
    """The library transformers, told to ask nobody and to show no bars; what it cannot read is `Invalid` in our words."""
    os.environ.update(_QUIET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its own parts, to each other
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import transformers
        except ImportError as error:
            raise Invalid(f"Fine-tuning needs transformers and peft: pip install 'modelyard[language]' ({error}).") from error
        told: Any = transformers.utils.logging  # its functions are not annotated
        told.set_verbosity_error()
        told.disable_progress_bar()
        try:
            yield transformers
        except _REFUSALS as error:
            first = str(error).strip().partition("\n")[0][:_LONGEST]
            raise Invalid(f"transformers refused the model: {first or type(error).__name__}") from error


def open_model(folder: Path, kind: str, **options: Any) -> tuple[Any, dict[str, list[str]]]:
    """The model in `folder` as transformers' class `kind` (AutoModelForCausalLM, …), in evaluation mode, and the names of
    weights that it lacks, has too many, or has in another shape: by 'missing', 'unexpected', 'mismatched'."""
    with hub() as transformers:
        model, told = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **options
        )
    found = {what: sorted(str(name) for name in told[f"{what}_keys"]) for what in ("missing", "unexpected", "mismatched")}
    return model, {what: names for what, names in found.items() if names}


def open_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer. Raises `Invalid` where it has none."""
    with hub() as transformers:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def copy_companions(base: Path, folder: Path, names: Iterable[str] = COMPANIONS) -> None:
    """Copy what `base` has of these, and `folder` has not."""
    for name in names:
        if (base / name).is_file() and not (folder / name).exists():
            shutil.copyfile(base / name, folder / name)


def ends(folder: Path) -> list[int]:
    """The tokens that end an answer, by the folder's generation_config.json; none where it names none."""
    if not (folder / GENERATION).is_file():
        return []
    try:
        said = json.loads(inside(folder, GENERATION).read_bytes()).get("eos_token_id")
    except (ValueError, AttributeError) as error:
        raise Invalid(f"{GENERATION} is no JSON object: {error}.") from error
    return [number for number in (said if isinstance(said, list) else [said]) if type(number) is int and number >= 0]
