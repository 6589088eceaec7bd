"""How well a language model foretells texts, and what a variant loses: by blocks of tokens, of which some are drawn again;
those that hold parts of one text go together, since these are not independent (A. C. Davison, D. V. Hinkley, 1997, Bootstrap
Methods and their Application, 3.8).

Losses are counted in percent of the perplexity, which is what a gate's points are then: at 2 a variant may have 1.02 times the
original's. Pure functions over what each block cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from modelyard.optimisation.evidence import Evidence, Resampled
from modelyard.optimisation.intervals import Interval
from modelyard.tensors import Array

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Foretold:
    """Of each block: the nats its tokens cost together, FP64 [n]; how many there are, INT64 [n]; of each token which one was
    held most likely, in order, INT64 [tokens]; and which blocks go together, INT64 [n]."""

    nats: Array
    tokens: Array
    likeliest: Array
    groups: Array

    @property
    def perplexity(self) -> float:
        """exp of the mean nats a token."""
        return math.exp(min(float(self.nats.sum() / self.tokens.sum()), 700.0))

    @property
    def independent(self) -> int:
        """How many groups of blocks there are, were all as long: (Σ tokens)² / Σ tokens² (L. Kish, 1965, Survey Sampling)."""
        tokens = _together(self.tokens, self.groups).astype(np.int64)
        return int(tokens.sum()) ** 2 // int((tokens**2).sum())


def interval(found: Foretold, confidence: float, seed: int) -> Interval:
    """The perplexity, by a percentile bootstrap over groups of blocks."""
    drawn = np.exp(_means(found.nats, found, seed))
    return _interval(found.perplexity, drawn, confidence)


def drop(original: Foretold, variant: Foretold, confidence: float, seed: int) -> Interval:
    """By how many percent the variant's perplexity is larger on the same groups, which are drawn for both."""
    return _interval(_percent(variant.perplexity / original.perplexity), _lost(original, variant, seed), confidence)


def evidence(original: Foretold, variant: Foretold, split: str, left_out: int, seed: int) -> Evidence:
    """What the gate decides by."""
    value = _percent(variant.perplexity / original.perplexity)
    return Evidence(
        metric="perplexity",
        split=split,
        original=original.perplexity,
        variant=variant.perplexity,
        drop=Resampled.of(original.independent, value, np.sort(_lost(original, variant, seed)).tolist()),
        agreement=round(float(np.mean(original.likeliest == variant.likeliest)), 9),
        left_out=left_out,
    )


def _lost(original: Foretold, variant: Foretold, seed: int) -> Array:
    lost: Array = 100 * np.expm1(_means(variant.nats - original.nats, original, seed))
    return lost


def _means(nats: Array, found: Foretold, seed: int) -> Array:
    nats, tokens = (_together(each, found.groups) for each in (nats, found.tokens))
    random, rows = np.random.default_rng(seed), len(nats)
    drawn = (random.integers(0, rows, rows) for _ in range(_RESAMPLES))
    return np.array([nats[some].sum() / tokens[some].sum() for some in drawn])


def _together(values: Array, groups: Array) -> Array:
    """Of each group the sum."""
    return np.bincount(np.unique(groups, return_inverse=True)[1], values)


def _percent(ratio: float) -> float:
    return round(100 * (ratio - 1), 9)


def _interval(value: float, drawn: Array, confidence: float) -> Interval:
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))
