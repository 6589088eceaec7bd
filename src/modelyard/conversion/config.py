"""What an `import-model` job is asked for, and the strict little language in which a tensor is stated: 'x:FP32[-1,10]'.

Read by `work.py` in every process, so nothing here loads a model library.
"""

from __future__ import annotations

import difflib
import re
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, field_validator

from modelyard.engines.base import TensorCard
from modelyard.errors import Invalid
from modelyard.kinds import Config
from modelyard.tensors import DATATYPES

_TENSOR = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_.\-/:]{0,127}):(?P<datatype>[A-Z0-9]+)\[(?P<shape>[0-9, \-]*)\]")
_MODULE = re.compile(r"(?P<file>[^:]+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]*)")
_SOURCE = r"^hf:[A-Za-z0-9][A-Za-z0-9._/@-]{0,300}$"
_MOST_DIMS = 16
# Those the platform knows a transform for or infers, and Hugging Face's names of what tensors in and tensors out may be for.
TASKS = (
    "audio-classification",
    "depth-estimation",
    "feature-extraction",
    "fill-mask",
    "image-classification",
    "image-feature-extraction",
    "image-segmentation",
    "image-to-image",
    "object-detection",
    "sentence-similarity",
    "summarization",
    "tabular-classification",
    "tabular-regression",
    "text-classification",
    "text-generation",
    "time-series-forecasting",
    "token-classification",
    "translation",
    "video-classification",
)


def parse_tensor(text: str) -> TensorCard:
    """The tensor stated as 'name:DATATYPE[dim,dim,…]': dim 0 is the batch, -1 any size. Raises `Invalid`, saying why."""
    match = _TENSOR.fullmatch(text.strip())
    if not match:
        raise Invalid(f"'{text}' states no tensor; expected name:DATATYPE[dims], for example x:FP32[-1,10].")
    datatype = match["datatype"]
    if datatype not in DATATYPES:
        raise Invalid(f"'{text}': no datatype '{datatype}'; there are {', '.join(DATATYPES)}.")
    dims = match["shape"].split(",")
    if not all(re.fullmatch(r" *(-1|[1-9][0-9]{0,9}) *", dim) for dim in dims) or len(dims) > _MOST_DIMS:
        raise Invalid(f"'{text}': each dim is a positive number or -1 for any size, at least the batch, at most {_MOST_DIMS}.")
    return TensorCard(name=match["name"], datatype=datatype, shape=tuple(int(dim) for dim in dims))


def parse_module(text: str) -> tuple[str, str]:
    """'model.py:SimpleModel' → ('model.py', 'SimpleModel'). Raises `Invalid`; the file lies inside the upload."""
    match = _MODULE.fullmatch(text)
    path = PurePosixPath(match["file"]) if match else PurePosixPath("..")
    if not match or path.is_absolute() or ".." in path.parts:
        raise Invalid(
            f"'{text}' names no module; expected file.py:Class with a relative path, for example model.py:SimpleModel."
        )
    return str(path), match["name"]


class ImportModelConfig(Config):
    """`file`: the model file among those uploaded (None: the only one of a known ending). `module` ('model.py:SimpleModel')
    and its constructor's `arguments`: the class whose weights a .pth, .pt or .safetensors file holds. `inputs`: what forward
    takes, as 'x:FP32[-1,10]'. `labels`, `transform`: of the task, as in `model.json`. `task`: None infers it. `source`: where
    the files were fetched from, as 'hf:org/name@commit'; it goes into the version's metadata. `onnx`: of a language model's
    folder, make the graph with a cache besides."""

    file: str | None = None
    module: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    task: str | None = None
    inputs: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    transform: dict[str, Any] | None = None
    onnx: bool = False
    source: str | None = Field(default=None, pattern=_SOURCE)

    @field_validator("inputs")
    @classmethod
    def _inputs_parse(cls, inputs: tuple[str, ...]) -> tuple[str, ...]:
        for text in inputs:
            _checked(parse_tensor, text)
        return inputs

    @field_validator("module")
    @classmethod
    def _module_parses(cls, module: str | None) -> str | None:
        if module is not None:
            _checked(parse_module, module)
        return module

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, task: str | None) -> str | None:
        if task is not None and task not in TASKS:
            near = difflib.get_close_matches(task, TASKS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(TASKS)}"
            raise ValueError(f"'{task[:60]}' is no task; {hint}")
        return task

    @property
    def tensors(self) -> tuple[TensorCard, ...]:
        return tuple(parse_tensor(text) for text in self.inputs)


def _checked(parse: Any, text: str) -> None:
    try:
        parse(text)
    except Invalid as error:
        raise ValueError(error.message) from error
