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
    return Foretold(nats, tokens, np.arange(tokens.sum()) % 7, np.arange(rows))


def test_a_perplexity_is_of_tokens_not_of_blocks():
    found = Foretold(np.array([10.0, 1.0]), np.array([10, 1]), np.zeros(11, np.int64), np.arange(2))
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
    assert (again.metric, again.left_out, again.agreement) == ("perplexity", 3, 1.0)
    assert 150 < again.rows < 200, "they are not all as long"
    assert again.drop.most(0.95) > again.drop.drop


def several(found: Foretold, times: int) -> Foretold:
    """Each block as a text of so many, which are all alike."""
    nats, tokens = (np.repeat(each, times) for each in (found.nats, found.tokens))
    return Foretold(nats, tokens, np.zeros(tokens.sum(), np.int64), np.repeat(found.groups, times))


def test_blocks_of_one_text_are_no_more_than_one():
    one, other = foretold(rows=40), foretold(more=0.02, noise=0.1, rows=40)
    few, many = drop(one, other, 0.95, 0), drop(several(one, 8), several(other, 8), 0.95, 0)
    assert (many.low, many.high) == pytest.approx((few.low, few.high))
    seen = evidence(several(one, 8), several(other, 8), "report", 0, 0)
    assert seen.rows == evidence(one, other, "report", 0, 0).rows <= 40
    assert seen.drop.most(0.95) == pytest.approx(evidence(one, other, "report", 0, 0).drop.most(0.95))


def test_equally_long_blocks_count_one_each_and_a_book_beside_letters_is_nearly_all_there_is():
    tokens = np.full(30, 512)
    nats, likeliest = 2.0 * tokens, np.zeros(tokens.sum(), np.int64)
    assert Foretold(nats, tokens, likeliest, np.arange(30)).independent == 30
    book = np.append(tokens, [512] * 300)
    groups = np.append(np.arange(30), [29] * 300)
    found = Foretold(2.0 * book, book, np.zeros(book.sum(), np.int64), groups)
    assert found.independent == 1
    assert evidence(found, found, "report", 0, 0).drop.most(0.95) == math.inf


def test_agreement_is_as_sure_as_its_independent_blocks_make_it():
    one = foretold(rows=40)
    other = Foretold(one.nats, one.tokens, np.where(np.arange(len(one.likeliest)) % 50, one.likeliest, -1), one.groups)
    seen = evidence(one, other, "report", 0, 0)
    assert seen.agreement == pytest.approx(0.98, abs=0.001)
    assert seen.least_agreement(0.95) < 0.95
    assert seen.least_agreement(0.95) < seen.least_agreement(0.95, 10) < 0.98
