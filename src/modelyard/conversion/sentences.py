"""What a sentence-transformers folder says of itself beside the model: how the tokens' vectors become one for a text, and how
long a text may be. Pure reading, called by the conversion of encoders; what it cannot keep it refuses, because an embedding
made another way looks just as good and is of no use beside those that are stored already.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelyard.engines.files import inside
from modelyard.errors import Invalid

MODULES = "modules.json"
_SETTINGS = "config_sentence_transformers.json"
# Of such a folder, what is kept with the version beside the model's own files.
KEPT = re.compile(
    r"modules\.json|config_sentence_transformers\.json|sentence_[a-z_-]+_config\.json|[0-9]+_Pooling/config\.json"
)
_LENGTHS = "sentence_*_config.json"
_STEPS = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_MODES: Mapping[str, Literal["mean", "cls"]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "mean": "mean",  # later versions have one name instead of flags
    "cls": "cls",
}


@dataclass(frozen=True, slots=True)
class Sentences:
    """`pooling`: the mean of the tokens' vectors, or the first one; `normalise` to length 1; `length`: tokens of a text at
    most, None where nothing says it; `stated`: by the folder itself."""

    pooling: Literal["mean", "cls"] = "mean"
    normalise: bool = False
    length: int | None = None
    stated: bool = False

    @property
    def note(self) -> str:
        how = "their mean" if self.pooling == "mean" else "the first one"
        size = "normalised to length 1" if self.normalise else "not normalised"
        said = f"as {MODULES} says" if self.stated else f"for there is no {MODULES} to say so"
        return f"Of a text's token vectors it gives {how}, {size}, {said}."


def read(folder: Path) -> Sentences:
    """Without modules.json the mean, not normalised. Raises `Invalid` for steps other than a transformer, pooling by mean or
    first token, and normalising; and for texts that are changed before they are read."""
    length = _length(folder)
    if not (folder / MODULES).is_file():
        return Sentences(length=length)
    if _said(folder, _SETTINGS, {}).get("default_prompt_name"):
        raise Invalid(f"{_SETTINGS} puts a prompt before each text, which is not done here.")
    steps = _said(folder, MODULES, [])
    try:
        kinds = [str(step["type"]).rpartition(".")[2] for step in steps]
        paths = [str(step["path"]) for step in steps]
    except (TypeError, KeyError) as error:
        raise Invalid(f"{MODULES} is no list of modules, each with type and path.") from error
    if kinds not in _STEPS or paths[0]:
        raise Invalid(
            f"{MODULES} names {', '.join(kinds)}; one graph can be made of Transformer (at the top), Pooling and Normalize."
        )
    return Sentences(_pooling(folder, f"{paths[1]}/config.json"), "Normalize" in kinds, length, stated=True)


def _pooling(folder: Path, name: str) -> Literal["mean", "cls"]:
    said = _said(folder, name, None)
    named = said.get("pooling_mode")
    asked = [named] if isinstance(named, str) else [key for key, on in said.items() if key.startswith("pooling_mode_") and on]
    if len(asked) != 1 or asked[0] not in _MODES:
        raise Invalid(f"{name} asks for pooling by {', '.join(asked) or 'nothing'}; the mean and the cls token are known.")
    return _MODES[asked[0]]


def _length(folder: Path) -> int | None:
    for path in sorted(folder.glob(_LENGTHS)):
        said = _said(folder, path.name, {})
        if said.get("do_lower_case"):
            raise Invalid(f"{path.name} makes each text lower case before it is read, which is not done here.")
        length = said.get("max_seq_length")
        if isinstance(length, int) and length > 0:
            return length
    return None


def _said(folder: Path, name: str, default: Any) -> Any:
    """A JSON file of the same form as `default` (None: an object that must be there)."""
    if default is not None and not (folder / name).is_file():
        return default
    try:
        said = json.loads(inside(folder, name).read_bytes())
    except ValueError as error:
        raise Invalid(f"{name} is not JSON: {error}.") from error
    if not isinstance(said, type(default) if default is not None else dict):
        raise Invalid(f"{name} is not of the form that sentence-transformers writes.")
    return said
