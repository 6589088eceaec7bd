"""The rows that ranges of eight bits are found by, of the calibrate split, and those that steps train on: none that anything is
judged by, which would make every figure look better than it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from modelyard.errors import Invalid
from modelyard.optimisation.examples import Source
from modelyard.tensors import Array

LEAST = 8
_SPLIT, _JUDGING = "calibrate", ("select", "report")
_MOST_SHARED = 0.1  # of the rows: a table may have a few alike, more is a mistake


def calibration(source: Source, most: int, seed: int) -> Mapping[str, Array]:
    """At most `most` rows of the calibrate split, as `drawn`."""
    return drawn(source, most, seed, _SPLIT)


def drawn(source: Source, most: int | None, seed: int, split: str) -> Mapping[str, Array]:
    """At most `most` rows of a split (None: all) as engine inputs, drawn by `seed`, but none that is in a split that judges as
    well. Raises `Invalid` where there are too few, or many are such."""
    if source.dataset.rows(split) < LEAST:
        raise Invalid(
            f"The split '{split}' of the dataset has {source.dataset.rows(split)} rows; this needs at least {LEAST}: import "
            "more data."
        )
    return source.examples(split, most, seed, unseen(source, split)).inputs


def unseen(source: Source, split: str, check: Callable[[], None] = lambda: None) -> Array:
    """INT64: the rows of a split that are in none that judges, as the model is shown them; `check` is called now and then.
    Raises `Invalid` where more than a tenth are."""
    fresh = source.fresh(split, _JUDGING, check)
    if (shared := int((~fresh).sum())) > _MOST_SHARED * len(fresh):
        raise Invalid(
            f"{shared:,} of {len(fresh):,} rows of the split '{split}' are in {' or '.join(_JUDGING)} as well: figures would "
            "be of what was learned from. Import the dataset anew with each row in one split."
        )
    return np.flatnonzero(fresh)
