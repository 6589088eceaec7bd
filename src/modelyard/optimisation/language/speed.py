"""How fast a language model answers through the engine that serves it: one caller alone, and several at once. For `run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np

from modelyard.engines.base import ENGINES, ModelCard, StreamEngine
from modelyard.optimisation.measure import Speed
from modelyard.tensors import Call, Tensor

STREAMS = 8
_TOKENS, _WARM = 48, 4
_PROMPT = "The quick brown fox jumps over the lazy dog. "


def measure(folder: Path, check: Callable[[], None], threads: int = 1) -> Speed:
    """`p50_ms`, `p99_ms` between two tokens of one caller; `items_per_s`: tokens a second of `STREAMS` together. Raises
    `Invalid` where the engine refuses the file."""
    card = ModelCard.load(folder)
    engine = cast(StreamEngine, ENGINES.get(card.engines[0])(folder, card, threads=threads))
    try:
        _steps(engine, card, 1, _WARM, check)
        alone = _steps(engine, card, 1, _TOKENS, check)
        together = _steps(engine, card, STREAMS, _TOKENS, check)
    finally:
        engine.close()
    p50, p99 = np.percentile(alone[1:], [50, 99]) * 1e3  # the first step reads the text
    return Speed(round(float(p50), 4), round(float(p99), 4), round(STREAMS * _TOKENS / sum(together), 1))


def _steps(engine: StreamEngine, card: ModelCard, callers: int, tokens: int, check: Callable[[], None]) -> list[float]:
    """The seconds of each step until all have ended, or as many as there may be."""
    spec = card.inputs[0]
    for number in range(callers):
        text = np.array([(_PROMPT * (1 + number % 3)).encode()], dtype=object)
        more = {"max_tokens": tokens, "ignore_end": True}
        engine.add(Call(f"{number}", "", "", "", (Tensor(spec.name, spec.datatype, text),), parameters=more))
    seconds, left = list[float](), callers
    while left and len(seconds) < 4 * tokens:
        check()
        began = time.perf_counter()
        said = engine.step()
        seconds.append(time.perf_counter() - began)
        left -= sum(last for _, _, last in said)
    return seconds
