"""What embeddings of texts are compared by: how alike two are, and at which place the one that belongs to another is found.
Pure functions over arrays; called by `examples`, which knows the models and the dataset they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from modelyard.errors import Invalid
from modelyard.optimisation.evidence import Metric
from modelyard.tensors import Array

_CHUNK = 64
# Metrics of texts that are found by their embeddings, each with the places that are as good as the first.
FOUND: Mapping[Metric, int] = {"mrr": 1, "recall@1": 1, "recall@10": 10}


def alike(embeddings: Array) -> Array:
    """FP64 [rows]: the cosine of each row's embedding and another's, the same one of every model. `embeddings`: [rows, dim]."""
    order = np.random.default_rng(0).permutation(len(embeddings))
    unit = _unit(embeddings[order])
    found = np.empty(len(order))
    found[order] = (unit * np.roll(unit, 1, axis=0)).sum(axis=1)
    return found


def places(queries: Array, passages: Array, belongs: Array, check: Callable[[], None]) -> Array:
    """INT64 [rows]: of each query the place of its own passage among all, by the cosine; another that is as near comes before
    it. `queries`: embeddings [rows, dim]; `passages`: [passages, dim], no two of the same text; `belongs`: of each query the
    position of its own, INT64 [rows]. Raises `Invalid` for an embedding that is near to nothing; `check` is called now and
    then."""
    ours, theirs = _unit(queries), _unit(passages)
    found = np.empty(len(ours), np.int64)
    for row, own in enumerate(ours):
        if not row % _CHUNK:
            check()
        near = theirs @ own
        if not np.isfinite(near).all():
            raise Invalid("An embedding holds NaN or infinity: nothing is near to it or far from it.")
        found[row] = int((near >= near[belongs[row]]).sum())
    return found


def _unit(embeddings: Array) -> Array:
    found: Array = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    return found
