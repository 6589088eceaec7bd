"""What converters that trace a PyTorch module share: rows to trace it by, the dims that stay open, silence, and where in the
user's source it ended.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelyard.tensors import Array

_ROWS = 3  # 0 and 1 are special to torch.export


def few(array: Array, fixed: int = -1) -> Array:
    """A few rows, or as many as a `fixed` batch has, in memory of their own, repeated where there are fewer."""
    rows = _ROWS if fixed == -1 else fixed
    return np.ascontiguousarray(np.resize(array, (rows, *array.shape[1:])) if len(array) < rows else array[:rows].copy())


def open_dims(shape: tuple[int, ...] | None, rank: int) -> dict[int, Any]:
    """For torch.export, the dims that a card states as -1; all where it states none."""
    dims = shape or (-1,) * rank
    return {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(dims) if dim == -1}


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it came from, and so on."""
    yield error
    if error.__cause__ is not None:
        yield from causes(error.__cause__)


def place(error: BaseException, source: Path, module: nn.Module) -> str:
    """Where in `source` a module's forward ended: "model.py:36, `if y.sum() > 0:`, in layer 'inner' (Inner)"; '' where it
    did not end there."""
    walks = (traceback.walk_tb(each.__traceback__) for each in causes(error))
    found = [(frame, line) for walk in walks for frame, line in walk if frame.f_code.co_filename == str(source)]
    if not found:
        return ""
    frame, line = found[-1]
    layer = frame.f_locals.get("self")
    names = {id(part): name for name, part in module.named_modules()}
    inner = f", in layer '{names[id(layer)]}' ({type(layer).__name__})" if names.get(id(layer)) else ""
    return f"{source.name}:{line}, `{linecache.getline(str(source), line).strip()[:120]}`{inner}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters tell each step of their own, print graphs and warn of what they do; none of it is the user's."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        dropped = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(dropped), contextlib.redirect_stderr(dropped):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
