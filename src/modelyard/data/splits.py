"""Which split a sample belongs to: a pure function of its content, so that nothing else can move it.

Equal samples always share a split (no leak from training into a report), and a dataset that grows or is reordered keeps every
sample where it was. Used by dataset import; `train` learns, `calibrate` sets quantisation ranges, `select` chooses between
models and epochs, `report` is looked at once, at the end.
"""

from __future__ import annotations

import hashlib
from itertools import accumulate

SHARES = {"train": 60, "calibrate": 10, "select": 15, "report": 15}
SPLITS = tuple(SHARES)
_ENDS = tuple(accumulate(SHARES.values()))
_DOMAIN = b"modelyard split\0"  # so that the split says nothing about other uses of the content's hash


def split_of(content: bytes) -> str:
    """The split of the sample with this content: what a model would be shown of it, never its label."""
    digest = hashlib.sha256(_DOMAIN + content).digest()
    percent = int.from_bytes(digest[:8], "big") * _ENDS[-1] >> 64
    return next(split for split, end in zip(SPLITS, _ENDS, strict=True) if percent < end)
