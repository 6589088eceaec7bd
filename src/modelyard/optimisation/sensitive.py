"""Which layers suffer from eight bits: each is quantised alone, and what that changes in the answers is measured on rows of the
calibrate split, as is what the others answer together without the worst. Called by `chain`; knows graphs and no dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from modelyard.conversion.base import count
from modelyard.errors import Invalid
from modelyard.optimisation.quantise import Graph
from modelyard.tensors import Array

_CHUNK = 64  # rows at a time
_ERRORS_ONLY = 3
_MOST = 2  # of `auto`: one layer in so many may stay in float


def leave_sensitive(
    graph: Graph, target: Path, alike: Callable[[Path], bool], check: Callable[[], None]
) -> tuple[list[str], dict[str, float]]:
    """The layers to be left in float by `graph.step`, and what each of the others does alone: the relative length of the
    change of all outputs. `alike`: whether a quantised graph answers like the float one; `check` is called at each try. Raises
    `Invalid` where a named layer is not there, or nothing would be left to quantise."""
    step, left = graph.step, [graph.known(name) for name in graph.step.float_layers]
    effects: dict[str, float] = {}
    if step.sensitive:
        effects = measure(graph, [name for name in graph.layers if name not in left], target, check)
    worst = sorted(effects, key=lambda name: (-effects[name], name))
    if step.sensitive == "auto":
        left += _few(graph, target, left, worst, alike, check)
    else:
        left += worst[: step.sensitive]
    if graph.layers and len(left) == len(graph.layers):
        raise Invalid(f"All {len(left)} layers would stay in float; leave some to eight bits: {', '.join(graph.layers)}.")
    return left, effects


def measure(graph: Graph, names: list[str], target: Path, check: Callable[[], None]) -> dict[str, float]:
    """By layer, how far the answers are from the float ones where it alone has eight bits."""
    wanted, found = answers(graph.path, graph.calibration), {}
    for name in names:
        check()
        graph.write(target, only=[name])
        found[name] = round(distance(wanted, answers(target, graph.calibration)), 6)
    return found


def answers(path: Path, rows: Mapping[str, Array]) -> list[Array]:
    """All outputs of a graph for these rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {k: v[i : i + _CHUNK] for k, v in rows.items()}) for i in range(0, count(rows), _CHUNK)]
    return [np.concatenate(several) for several in zip(*parts, strict=True)]


def distance(wanted: list[Array], given: list[Array]) -> float:
    """The length of the difference over that of what is wanted, the largest over the outputs."""
    pairs = zip(wanted, given, strict=True)
    lengths = [(float(np.linalg.norm(b.astype(np.float64) - a)), float(np.linalg.norm(a))) for a, b in pairs]
    return max(change / max(length, 1e-12) for change, length in lengths)


def _few(
    graph: Graph, target: Path, left: list[str], worst: list[str], alike: Callable[[Path], bool], check: Callable[[], None]
) -> list[str]:
    """As few of the worst as it takes; half of all where that is not enough."""
    most = max(0, len(graph.layers) // _MOST - len(left))
    for several in range(most):
        check()
        graph.write(target, leave=[*left, *worst[:several]])
        if alike(target):
            return worst[:several]
    return worst[:most]
