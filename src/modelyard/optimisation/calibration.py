"""The rows that ranges of eight bits are found by: of the calibrate split, which nothing is judged by. Rows that judge as well
would make every figure look better than it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from modelyard.errors import Invalid
from modelyard.optimisation.examples import Source
from modelyard.tensors import Array

LEAST = 8
_SPLIT, _JUDGING = "calibrate", ("select", "report")
_MOST_SHARED = 0.1  # of the rows: a table may have a few alike, more is a mistake


def calibration(source: Source, most: int, seed: int) -> Mapping[str, Array]:
    """At most `most` rows of the calibrate split as engine inputs, drawn by `seed`, but none that is in a split that judges as
    well. Raises `Invalid` where there are too few, or many are such."""
    if source.dataset.rows(_SPLIT) < LEAST:
        raise Invalid(
            f"The split '{_SPLIT}' of the dataset has {source.dataset.rows(_SPLIT)} rows; ranges of eight bits need at least "
            f"{LEAST}: import more data."
        )
    fresh = source.fresh(_SPLIT, _JUDGING)
    if (shared := int((~fresh).sum())) > _MOST_SHARED * len(fresh):
        raise Invalid(
            f"{shared:,} of {len(fresh):,} rows of the split '{_SPLIT}' are in {' or '.join(_JUDGING)} as well: figures would "
            "be of what was calibrated on. Import the dataset anew with each row in one split."
        )
    return source.examples(_SPLIT, most, seed, np.flatnonzero(fresh)).inputs
