"""How fast a language model answers through the engine that serves it, one caller alone and several at once, and the memory
that takes. For `run`, in a process of its own, as such an engine serves: `python -m modelyard.optimisation.language.speed`.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from modelyard.engines.aside import aside
from modelyard.engines.base import ENGINES, ModelCard, StreamEngine
from modelyard.errors import Invalid
from modelyard.optimisation.measure import UNKNOWN, Speed
from modelyard.optimisation.memory import grown, held
from modelyard.tensors import Call, Tensor

STREAMS = 8
_TOKENS, _WARM = 48, 4
_LONGEST = 3600.0  # seconds
_PROMPT = "The quick brown fox jumps over the lazy dog. "


def measure(folder: Path, check: Callable[[], None]) -> tuple[Speed, float]:
    """`p50_ms`, `p99_ms` between two tokens of one caller; `items_per_s`: tokens a second of `STREAMS` together; and the bytes
    that the process had grown by then; unknown where it does not end well in time. Raises `Invalid` where the engine refuses
    the file."""
    found = aside("modelyard.optimisation.language.speed", [str(folder)], check, _LONGEST)
    if not isinstance(found, dict):
        return UNKNOWN, math.nan
    if "refused" in found:
        raise Invalid(found["refused"])
    return Speed(**found["speed"]), found["memory"]


def measured(folder: Path) -> dict[str, Any]:
    """The same, in this process."""
    card, before = ModelCard.load(folder), held(folder)
    engine = cast(StreamEngine, ENGINES.get(card.engines[0])(folder, card))
    _steps(engine, card, 1, _WARM)
    alone = _steps(engine, card, 1, _TOKENS)
    together = _steps(engine, card, STREAMS, _TOKENS)
    p50, p99 = np.percentile(alone[1:], [50, 99]) * 1e3  # the first step reads the text
    speed = {"p50_ms": round(float(p50), 4), "p99_ms": round(float(p99), 4)}
    speed["items_per_s"] = round(STREAMS * _TOKENS / sum(together), 1)
    memory = grown(before, folder)
    engine.close()
    return {"speed": speed, "memory": memory}


def _steps(engine: StreamEngine, card: ModelCard, callers: int, tokens: int) -> list[float]:
    """The seconds of each step until all have ended, or as many as there may be."""
    spec = card.inputs[0]
    for number in range(callers):
        text = np.array([(_PROMPT * (1 + number % 3)).encode()], dtype=object)
        more = {"max_tokens": tokens, "ignore_end": True}
        engine.add(Call(f"{number}", "", "", "", (Tensor(spec.name, spec.datatype, text),), parameters=more))
    seconds, left = list[float](), callers
    while left and len(seconds) < 4 * tokens:
        began = time.perf_counter()
        said = engine.step()
        seconds.append(time.perf_counter() - began)
        left -= sum(last for _, _, last in said)
    return seconds


if __name__ == "__main__":
    try:
        _found = measured(Path(sys.argv[1]))
    except Invalid as error:
        _found = {"refused": error.message}
    sys.stdout.write(f"{json.dumps(_found)}\n")
