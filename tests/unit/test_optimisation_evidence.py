"""Evidence: JSON both ways, bounds that can be read off at any confidence, and what is no evidence is refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.optimisation.evidence import Evidence, Paired, Resampled
from modelyard.optimisation.intervals import most

DRAWN = sorted(np.random.default_rng(0).normal(1.0, 0.5, 1000).tolist())
LABELS = Evidence(
    "accuracy",
    "report",
    0.95,
    0.94,
    Paired(930, 20, 10, 40),
    0.96,
    (0.02, 0.025),
    {"label=a": Paired(450, 5, 5, 40), "label=b": Paired(480, 15, 5, 0), "light=dim": Paired(0, 0, 0, 0)},
    ("light",),
    3,
)
NUMBERS = Evidence("r2", "report", 0.9, 0.89, Resampled.of(400, 1.0, DRAWN), 0.99)
TEXTS = Evidence("wer", "report", 0.1, 0.11, Resampled.of(400, 1.0, DRAWN, 0.5), 0.9)
PERPLEXITY = Evidence("perplexity", "report", 12.0, 12.1, Resampled.of(400, 1.0, DRAWN), 0.9)
PLACES = Evidence("recall@1", "report", 0.95, 0.94, LABELS.drop, 0.96, by_class=False)


@pytest.mark.parametrize("evidence", [LABELS, NUMBERS, TEXTS, PERPLEXITY, PLACES])
def test_it_is_the_same_after_json(evidence: Evidence) -> None:
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json(), allow_nan=False))) == evidence


@pytest.mark.parametrize(
    "change",
    [
        {"metric": "luck"},
        {"rows": 999},
        {"original": math.nan},
        {"original": "0.9"},
        {"agreement": None},
        {"drop": {"both": 1, "original": 2, "variant": 3}},
        {"drop": {"both": 1000.0, "original": 0, "variant": 0, "neither": 0}},
        {"drop": {"both": 1010, "original": -10, "variant": 0, "neither": 0}},
        {"drop": {"both": True, "original": 999, "variant": 0, "neither": 0}},
        {"slices": {"label=a": {"both": 5000, "original": 0, "variant": 0, "neither": 0}}},
        {"slices": None},
        {"calibration": [0.1]},
        {"calibration": [0.1, math.inf]},
    ],
)
def test_what_is_not_whole_is_no_evidence(change: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="is no evidence"):
        Evidence.from_json({**LABELS.to_json(), **change})


@pytest.mark.parametrize("quantiles", [[0.0] * 10, [1.0, 0.5] + [2.0] * 199, [math.nan] * 201])
def test_quantiles_are_whole_and_in_order(quantiles: list[float]) -> None:
    body = NUMBERS.to_json()
    with pytest.raises(Invalid, match="is no evidence"):
        Evidence.from_json({**body, "drop": {**body["drop"], "quantiles": quantiles}})


@pytest.mark.parametrize("body", [None, [], "x", {}, {"metric": "accuracy"}])
def test_anything_else_is_no_evidence(body: object) -> None:
    with pytest.raises(Invalid, match="is no evidence"):
        Evidence.from_json(body)


def test_a_paired_drop_is_in_points() -> None:
    drop = Paired(930, 20, 10, 40)
    assert (drop.rows, drop.drop) == (1000, 1.0)
    assert drop.most(0.95) == pytest.approx(100 * most(20, 10, 1000, 0.95))
    assert math.isnan(Paired(0, 0, 0, 0).drop)
    assert Paired(0, 0, 0, 0).most(0.95) == 100.0


@given(st.floats(0.6, 0.999))
def test_the_bound_of_resamples_is_no_lower_than_their_quantile(confidence: float) -> None:
    assert NUMBERS.drop.most(confidence) >= np.quantile(DRAWN, confidence, method="inverted_cdf") - 1e-6
    assert NUMBERS.drop.most(confidence) <= max(DRAWN) + 1e-6


def test_resampling_says_nothing_of_few_rows_or_of_what_is_nearly_sure() -> None:
    assert Resampled.of(29, 0.0, DRAWN).most(0.95) == math.inf
    assert Resampled.of(30, 0.0, DRAWN).most(0.95) < math.inf
    assert NUMBERS.drop.most(0.9995) == math.inf


def test_more_rows_draw_the_bound_in_as_the_root_of_their_number() -> None:
    width = NUMBERS.drop.most(0.95) - 1.0
    assert NUMBERS.drop.most(0.95, 4) - 1.0 == pytest.approx(width / 2)


def test_agreement_of_labels_has_a_bound_of_its_own() -> None:
    assert LABELS.least_agreement(0.95) < LABELS.least_agreement(0.95, 10) < 0.96
    assert NUMBERS.least_agreement(0.95) == NUMBERS.agreement
    assert replace(LABELS, agreement=1.0).least_agreement(0.95) < 1


def test_a_baseline_knows_something_where_it_is_better_than_no_answer() -> None:
    for evidence, worst, best in ((LABELS, 0.0, 1.0), (NUMBERS, 0.0, 1.0), (TEXTS, 1.0, 0.0)):
        assert replace(evidence, original=best).knows
        assert replace(evidence, original=(worst + best) / 2).knows
        assert not replace(evidence, original=worst).knows


def test_equal_texts_are_sure_to_be_so_often_as_wilson_says() -> None:
    assert TEXTS.least_agreement(0.95) == PERPLEXITY.least_agreement(0.95)
    assert TEXTS.least_agreement(0.95) == replace(LABELS, drop=Paired(400, 0, 0, 0), agreement=0.9).least_agreement(0.95) < 0.9
    assert NUMBERS.least_agreement(0.95) == NUMBERS.agreement


@pytest.mark.parametrize("metric", ["wer", "rouge", "recall@1"])
def test_evidence_of_before_is_bounded_as_if_its_rows_weighed_alike(metric: str) -> None:
    """That of places was resampled, too."""
    body = {**TEXTS.to_json(), "metric": metric}
    del body["drop"]["worst"], body["by_class"]
    found = Evidence.from_json(body)
    assert found == replace(TEXTS, metric=metric, drop=replace(TEXTS.drop, worst=0.25))  # type: ignore[arg-type]
    del body["drop"]["rows"]
    with pytest.raises(Invalid, match="is no evidence"):
        Evidence.from_json(body)
    numbers = NUMBERS.to_json()
    del numbers["drop"]["worst"]
    assert Evidence.from_json(numbers) == NUMBERS


def test_a_row_that_is_worth_less_than_nothing_is_no_evidence() -> None:
    body = TEXTS.to_json()
    with pytest.raises(Invalid, match="is no evidence"):
        Evidence.from_json({**body, "drop": {**body["drop"], "worst": -1.0}})


def test_what_no_row_shows_is_bounded_as_is_exact_where_none_differs() -> None:
    for rows, confidence in ((300, 0.95), (1000, 0.99)):
        equal = Resampled.of(rows, 0.0, [0.0] * 1000, 100 / rows)
        assert equal.most(confidence) == pytest.approx(100 * (1 - (1 - confidence) ** (1 / rows)), rel=0.01)
        assert equal.most(confidence, 2) == equal.most(confidence) / 2
