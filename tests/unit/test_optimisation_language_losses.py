"""Perplexities and what is lost of them: intervals that hold, and evidence that the gate reads."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modelyard.optimisation.evidence import Evidence
from modelyard.optimisation.language.losses import Foretold, drop, evidence, interval


def foretold(more: float = 0.0, noise: float = 0.0, rows: int = 200, seed: int = 0) -> Foretold:
    random = np.random.default_rng(seed)
    tokens = random.integers(10, 60, rows)
    nats = tokens * (
        2.0 + random.normal(0, 0.3, rows) + more + np.random.default_rng(seed + 1).normal(0, noise, rows) * (noise > 0)
    )
    return Foretold(nats, tokens, np.arange(tokens.sum()) % 7)


def test_a_perplexity_is_of_tokens_not_of_blocks():
    found = Foretold(np.array([10.0, 1.0]), np.array([10, 1]), np.zeros(11, np.int64))
    assert found.perplexity == pytest.approx(math.e)


def test_what_is_lost_is_told_in_percent_and_paired():
    lost = drop(foretold(), foretold(more=0.02), 0.95, 0)
    assert lost.value == pytest.approx(100 * math.expm1(0.02))
    assert lost.high - lost.low < 1e-6, "the same blocks cost both the same more: nothing is left to chance"
    noisy = drop(foretold(), foretold(more=0.02, noise=0.1), 0.95, 0)
    assert noisy.low < 100 * math.expm1(0.02) < noisy.high
    own = interval(foretold(), 0.95, 0)
    assert own.low < own.value < own.high
    assert own.high - own.low > 10 * (noisy.high - noisy.low) / 100 * own.value / 10


def test_evidence_goes_through_json_and_holds_a_bound():
    found = evidence(foretold(), foretold(more=0.02, noise=0.1), "report", 3, 0)
    again = Evidence.from_json(found.to_json())
    assert again == found
    assert (again.metric, again.left_out, again.agreement, again.rows) == ("perplexity", 3, 1.0, 200)
    assert again.drop.most(0.95) > again.drop.drop
