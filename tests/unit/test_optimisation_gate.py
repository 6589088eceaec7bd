"""The gate: it denies by default, says with figures why and how many rows would settle it, and errs no more than it says."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from modelyard.optimisation.comparison import compare
from modelyard.optimisation.evidence import Evidence, Paired, Resampled
from modelyard.optimisation.examples import Answers
from modelyard.optimisation.gate import Decision, GatePolicy, decide, loosened

POLICY = GatePolicy(max_accuracy_drop=1.0)
PAIRED = st.builds(Paired, st.integers(0, 3000), st.integers(0, 60), st.integers(0, 60), st.integers(0, 200)).filter(
    lambda drop: drop.both + drop.original > 0.05 * drop.rows  # there is more to lose than any budget here
)


def found(drop: Paired, **said: Any) -> Evidence:
    scores = ((drop.both + drop.original) / drop.rows, (drop.both + drop.variant) / drop.rows)
    whole: dict[str, Any] = {"agreement": (drop.both + drop.neither) / drop.rows, "slices": {"label=a": drop}, **said}
    return Evidence("accuracy", "report", *scores, drop, **whole)


GOOD = found(Paired(1900, 2, 1, 97), calibration=(0.02, 0.021))


def test_within_the_budget_it_passes() -> None:
    decision = decide(POLICY, GOOD)
    assert (decision.allowed, decision.reasons, decision.rows_needed) == (True, (), None)
    [check] = decision.checks
    assert (check.what, check.rows, check.seen, check.budget, check.met) == ("all rows", 2000, 0.05, 1.0, True)
    assert 0.05 < check.bound < 1.0


def test_without_an_evaluation_it_refuses() -> None:
    assert decide(POLICY, None) == Decision(False, ("It was not evaluated.",))


@given(PAIRED, st.sampled_from(["train", "calibrate", "select", ""]))
def test_another_split_than_the_report_proves_nothing(drop: Paired, split: str) -> None:
    assert not decide(GatePolicy(max_accuracy_drop=100), replace(found(drop), split=split)).allowed


def test_the_refusal_has_the_figures_and_the_rows_that_would_settle_it() -> None:
    seen = found(Paired(190, 0, 0, 10))
    decision = decide(POLICY, seen)
    assert not decision.allowed
    assert decision.rows_needed is not None
    [reason] = decision.reasons
    assert reason.startswith("It loses 0.00 points of all rows (200), at 0.95 confidence up to 1.79; 1 may be lost.")
    assert f"About {decision.rows_needed:,} rows of the report split would settle it at this rate; there were 200." in reason
    times = decision.rows_needed / 200
    assert decide(POLICY, found(Paired(math.ceil(190 * times), 0, 0, math.ceil(10 * times)))).allowed
    fewer = 0.98 * times
    assert not decide(POLICY, found(Paired(int(190 * fewer), 0, 0, int(10 * fewer)))).allowed


def test_what_loses_more_than_the_budget_no_number_of_rows_would_settle() -> None:
    decision = decide(POLICY, found(Paired(1800, 50, 5, 145)))
    assert (decision.allowed, decision.rows_needed) == (False, None)
    assert decision.reasons[0].endswith("1 may be lost. No number of rows would settle it at this rate.")


def test_right_on_average_and_wrong_on_a_slice_is_refused() -> None:
    slices = {"label=a": Paired(900, 40, 0, 60), "label=b": Paired(960, 0, 39, 1)}
    seen = found(Paired(1860, 40, 39, 61), slices=slices)
    assert decide(GatePolicy(max_accuracy_drop=2), seen).allowed
    decision = decide(GatePolicy(max_accuracy_drop=2, max_slice_drop=3), seen)
    assert not decision.allowed
    [reason] = decision.reasons
    assert reason.startswith("It loses 4.00 points where label=a (1,000)")


def test_a_language_model_loses_percent_of_its_perplexity() -> None:
    lost = Resampled(400, 3.0, tuple(3 + step / 1000 for step in range(201)))
    seen = Evidence("perplexity", "report", 10.0, 10.3, lost, 0.9, slices={"label=a": Resampled(0, 0.0, (0.0,) * 201)})
    reasons = decide(GatePolicy(max_accuracy_drop=2, max_slice_drop=5), seen).reasons
    assert reasons[0].startswith("It loses 3.00 percent of all independent blocks (400), at 0.95 confidence up to 3.19; 2")
    assert reasons[0].endswith("No number of independent blocks would settle it at this rate.")
    assert "points" not in " ".join(reasons)
    assert "No row was evaluated where label=a; 5 percent may be lost there." in reasons


def test_the_agreement_of_a_language_model_has_a_bound_and_that_of_numbers_says_that_it_has_none() -> None:
    drop = Resampled(40, 0.0, (0.0,) * 201)
    seen = Evidence("perplexity", "report", 10.0, 10.0, drop, 0.94)
    [reason] = decide(GatePolicy(max_accuracy_drop=2, min_agreement=0.9), seen).reasons
    assert reason.startswith("It answers as the baseline does in 0.9400 of tokens in 40 independent blocks, at 0.95 confidence")
    assert "at least 0.84" in reason
    assert "independent blocks of the report split would settle it at this rate; there were 40." in reason
    numbers = Evidence("r2", "report", 0.9, 0.9, drop, 0.94)
    [reason] = decide(GatePolicy(max_accuracy_drop=2, min_agreement=0.95), numbers).reasons
    assert reason == "Its answers agree with the baseline's by r2 0.9400; 0.95 is asked for."
    assert decide(GatePolicy(max_accuracy_drop=2, min_agreement=0.94), numbers).allowed


def test_a_class_without_rows_is_not_proven() -> None:
    seen = found(Paired(3000, 0, 0, 0), slices={"label=a": Paired(3000, 0, 0, 0), "label=b": Paired(0, 0, 0, 0)})
    decision = decide(GatePolicy(max_accuracy_drop=2, max_slice_drop=3), seen)
    assert decision.reasons == ("No row was evaluated where label=b; 3 points may be lost there.",)


def test_many_slices_are_told_of_by_the_worst() -> None:
    slices = {f"label={number}": Paired(100 - number, number, 0, 0) for number in range(9)}
    decision = decide(GatePolicy(max_accuracy_drop=50, max_slice_drop=0.5), found(Paired(800, 36, 0, 64), slices=slices))
    assert [reason.split(" (")[0].rpartition("=")[2] for reason in decision.reasons[:-1]] == ["8", "7", "6", "5"]
    assert decision.reasons[-1] == "So it is in 5 more slices."


@pytest.mark.parametrize(
    ("policy", "evidence", "reason"),
    [
        ({"max_slice_drop": 5}, replace(GOOD, slices={}), "It was not evaluated by class or slice"),
        ({"max_slice_drop": 5}, replace(GOOD, by_class=False), "It was not evaluated by class: there are more classes than"),
        ({"slices": ("light",)}, GOOD, "It was not evaluated by 'light': add --slice light."),
        ({"max_calibration_rise": 1}, replace(GOOD, calibration=None), "Its calibration is not known"),
        ({"max_calibration_rise": 0.05}, GOOD, "Its calibration error rises by 0.10 points; 0.05 may be added."),
        (
            {"min_agreement": 0.999},
            GOOD,
            "It answers as the baseline does in 0.9985 of 2,000 rows, at 0.95 confidence at least 0.99",
        ),
        ({}, replace(GOOD, original=0.0), "Its baseline knows nothing of these rows"),
        ({}, replace(GOOD, drop=Resampled(2000, math.nan, (0.0,) * 201)), "It loses nan points"),
    ],
)
def test_what_a_policy_asks_for_must_be_known(policy: dict[str, Any], evidence: Evidence, reason: str) -> None:
    decision = decide(GatePolicy(max_accuracy_drop=1.0, **policy), evidence)
    assert not decision.allowed
    assert any(said.startswith(reason) for said in decision.reasons), decision.reasons


@pytest.mark.parametrize(
    "policy", [{"slices": ("light",)}, {"max_calibration_rise": 0.2}, {"min_agreement": 0.99}, {"max_slice_drop": 1}]
)
def test_and_where_it_is_it_passes(policy: dict[str, Any]) -> None:
    assert decide(GatePolicy(max_accuracy_drop=1.0, **policy), replace(GOOD, columns=("light",))).allowed


def test_numbers_are_held_by_their_resamples() -> None:
    drawn = sorted(np.random.default_rng(1).normal(0.2, 0.1, 1000).tolist())
    seen = Evidence("r2", "report", 0.9, 0.898, Resampled.of(500, 0.2, drawn), 0.999)
    assert decide(GatePolicy(max_accuracy_drop=0.5), seen).allowed
    decision = decide(GatePolicy(max_accuracy_drop=0.3), seen)
    assert not decision.allowed
    assert decision.rows_needed is not None
    assert decision.rows_needed == pytest.approx(500 * (0.1645 / 0.1) ** 2, rel=0.15)


@given(PAIRED, st.floats(0, 5), st.floats(0, 5), st.sampled_from([0.8, 0.95, 0.99]), st.floats(0, 1))
def test_a_larger_budget_or_less_confidence_refuses_nothing_more(
    drop: Paired, first: float, second: float, confidence: float, slack: float
) -> None:
    small, large = sorted((first, second))
    strict = GatePolicy(max_accuracy_drop=small, max_slice_drop=small, confidence=confidence, min_agreement=1 - slack / 2)
    lax = GatePolicy(max_accuracy_drop=large, max_slice_drop=large, confidence=confidence - 0.2, min_agreement=1 - slack)
    if decide(strict, found(drop)).allowed:
        assert decide(lax, found(drop)).allowed


@given(PAIRED, st.floats(0, 5))
def test_a_better_variant_is_not_refused_where_a_worse_one_passes(drop: Paired, budget: float) -> None:
    policy = GatePolicy(max_accuracy_drop=budget, max_slice_drop=budget)
    if drop.original and decide(policy, found(drop)).allowed:
        better = replace(drop, both=drop.both + 1, original=drop.original - 1)
        assert decide(policy, found(better)).allowed


@given(PAIRED, st.floats(0.01, 5), st.sampled_from([0.9, 0.95, 0.99]))
def test_the_rows_needed_are_enough_and_hardly_more(drop: Paired, budget: float, confidence: float) -> None:
    decision = decide(GatePolicy(max_accuracy_drop=budget, confidence=confidence), found(drop))
    if decision.rows_needed is not None:
        times = decision.rows_needed / drop.rows
        assert times > 1
        assert drop.most(confidence, times) <= budget
        assert drop.most(confidence, times * 0.99 - 1 / drop.rows) > budget
    elif not decision.allowed:
        assert drop.most(confidence, 1e6) > budget  # past which no number is stated


def test_a_variant_at_the_edge_of_the_budget_passes_as_seldom_as_is_said() -> None:
    """Three budgets at once, each lost exactly: overall and in two classes. Simulated from a seed."""
    random, rounds, passed = np.random.default_rng(5), 2000, 0
    policy = GatePolicy(max_accuracy_drop=2, max_slice_drop=2, confidence=0.9)
    for counts in random.multinomial(300, [0.03, 0.01, 0.86, 0.10], size=(rounds, 2)):
        halves = [Paired(int(both), int(lost), int(won), int(neither)) for lost, won, both, neither in counts]
        whole = Paired(*(getattr(halves[0], n) + getattr(halves[1], n) for n in ("both", "original", "variant", "neither")))
        passed += decide(policy, found(whole, slices={"label=a": halves[0], "label=b": halves[1]})).allowed
    assert passed / rounds <= 0.1
    assert passed > 0


def test_what_is_kept_is_json_and_bounded() -> None:
    slices = {f"label={number}": Paired(0, 0, 0, 0) for number in range(1000)}
    kept = decide(GatePolicy(max_accuracy_drop=1, max_slice_drop=1), found(Paired(900, 0, 0, 100), slices=slices)).to_json()
    assert kept["allowed"] is False
    assert len(kept["checks"]) <= 30
    assert kept["checks"][1]["seen"] is None


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ({}, {}, ()),
        ({}, {"max_accuracy_drop": 0.5}, ()),
        ({}, {"max_accuracy_drop": 1.5}, ("max_accuracy_drop",)),
        ({}, {"max_slice_drop": 3}, ()),
        ({"max_slice_drop": 3}, {}, ("max_slice_drop",)),
        ({"max_slice_drop": 3}, {"max_slice_drop": 4}, ("max_slice_drop",)),
        ({"confidence": 0.95}, {"confidence": 0.9}, ("confidence",)),
        ({"confidence": 0.95}, {"confidence": 0.99}, ()),
        ({"min_agreement": 0.9}, {"min_agreement": 0.8}, ("min_agreement",)),
        ({"min_agreement": 0.9}, {}, ("min_agreement",)),
        ({"max_calibration_rise": 1}, {"max_calibration_rise": 2}, ("max_calibration_rise",)),
        ({"slices": ("a", "b")}, {"slices": ("a",)}, ("slices",)),
        ({"slices": ("a",)}, {"slices": ("a", "b")}, ()),
        ({"baseline": "m@1"}, {"baseline": "m@2"}, ("baseline",)),
        ({"dataset": "d"}, {}, ("dataset",)),
        ({}, {"dataset": "d", "baseline": "m@1"}, ("dataset",)),
        ({"dataset": "d"}, {"dataset": "d@2"}, ("dataset",)),
        ({}, {"baseline": "m@1"}, ()),
        ({}, {"metric": "rouge"}, ("metric",)),
        ({"metric": "rouge"}, {"metric": "rouge"}, ()),
        ({"metric": "rouge"}, {}, ("metric",)),
    ],
)
def test_what_a_change_loosens(before: dict[str, Any], after: dict[str, Any], what: tuple[str, ...]) -> None:
    policies = [GatePolicy.model_validate({"max_accuracy_drop": 1.0, **said}) for said in (before, after)]
    assert loosened(*policies) == what


def test_none_is_looser_than_any_and_no_tighter_than_none() -> None:
    assert loosened(POLICY, None) == ("the gate",)
    assert loosened(None, POLICY) == loosened(None, None) == ()


@given(PAIRED)
def test_what_was_evaluated_by_another_metric_proves_nothing(drop: Paired) -> None:
    asked = GatePolicy(max_accuracy_drop=100, metric="wer")
    decision = decide(asked, found(drop))
    assert (decision.allowed, decision.complete, decision.checks) == (False, False, ())
    assert decision.reasons == ("It was evaluated by accuracy, and not by wer.",)
    assert decide(asked.model_copy(update={"metric": "accuracy"}), GOOD).allowed


def counted(metric: str = "rouge", original: float = 0.3, **said: Any) -> Evidence:
    drop = Resampled.of(1000, 0.1, [0.1] * 1000)
    return Evidence(metric, "report", original, original - 0.001, drop, 0.99, **said)  # type: ignore[arg-type]


def test_whoever_evaluates_does_not_choose_what_decides() -> None:
    assert decide(POLICY, counted()).allowed
    unusual = decide(POLICY, counted(usual=False))
    assert (unusual.allowed, unusual.complete) == (False, False)
    assert unusual.reasons == ("It was evaluated by rouge, and not by what is usual for these answers.",)
    named = POLICY.model_copy(update={"metric": "rouge"})
    assert decide(named, counted(usual=False)).allowed
    assert decide(named, None).reasons == ("It was not evaluated by rouge.",)


def test_answers_that_were_cut_short_prove_nothing() -> None:
    assert decide(POLICY, counted(tokens=128)).allowed
    [reason] = decide(POLICY, counted(tokens=127)).reasons
    assert reason.startswith("Its answers were cut at 127 tokens; at least 128 are asked for")


@pytest.mark.parametrize(
    ("metric", "original", "points"), [("rouge", 0.008, "0.8"), ("wer", 0.992, "0.8"), ("bleu", 0.01, "1")]
)
def test_where_less_can_be_lost_than_may_nothing_is_shown(metric: str, original: float, points: str) -> None:
    [reason] = decide(POLICY, counted(metric, original)).reasons
    assert reason.startswith(f"Its baseline has {points} points to lose ({metric} {original:.3g})")
    assert decide(GatePolicy(max_accuracy_drop=100), counted(metric, original)).allowed  # who allows all asks for nothing


def test_evidence_of_before_is_usual() -> None:
    body = counted().to_json()
    del body["usual"], body["tokens"]
    assert Evidence.from_json(body) == counted()
    assert Evidence.from_json(counted(usual=False, tokens=5).to_json()) == counted(usual=False, tokens=5)


def test_a_baseline_that_is_hardly_ever_right_proves_nothing() -> None:
    """8 of 1,000 rows, of which a variant that is never right loses all: 0.8 points."""
    garbage = found(Paired(0, 8, 0, 992), slices={})
    [reason] = decide(GatePolicy(max_accuracy_drop=2), garbage).reasons
    assert reason.startswith("Its baseline has 0.8 points to lose (accuracy 0.008), all of which may be lost")
    assert decide(GatePolicy(max_accuracy_drop=2), found(Paired(30, 0, 0, 970))).allowed


def places(rows: int, lost: int, metric: str) -> Evidence:
    """Of so many rows, of which the original finds all at once, and the variant all but some."""
    variant = np.ones(rows)
    variant[:lost] = 1e-6
    texts = np.array([f"text {row}" for row in range(rows)], object)
    return compare(Answers(np.ones(rows)), Answers(variant), texts, metric, split="report")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [30, 100, 300, 1000])
@pytest.mark.parametrize("metric", ["recall@1", "recall@10", "mrr"])
def test_places_are_lost_within_the_budget_as_seldom_as_is_said(metric: str, rows: int) -> None:
    """Exactly, over how many rows are lost by a variant that loses the budget, from evidence to decision."""
    most = int(binom.ppf(1 - 1e-9, rows, 0.05))
    seen = [places(rows, lost, metric) for lost in range(most + 1)]
    for budget, confidence in ((1, 0.95), (5, 0.95), (2, 0.8), (0.5, 0.99)):
        policy = GatePolicy(max_accuracy_drop=budget, confidence=confidence)
        passed = sum(
            binom.pmf(lost, rows, budget / 100) * decide(policy, evidence).allowed for lost, evidence in enumerate(seen)
        )
        assert passed <= 1 - confidence


@pytest.mark.parametrize("rows", [30, 100, 300, 1000])
@pytest.mark.parametrize(("won", "weight"), [(0.0, 1), (0.05, 1), (0.0, 10)])
def test_resampled_drops_are_within_the_budget_as_seldom_as_is_said(rows: int, won: float, weight: int) -> None:
    """Rows that are lost or won whole, simulated from a seed; or those alone that weigh ten times as much as the rest."""
    random, rounds, passed, budget = np.random.default_rng(7), 200, 0, 2.0
    for _ in range(rounds):
        heavy = random.random(rows) < 0.1
        weights = np.where(heavy, weight, 1)
        lost = budget / 100 + won if weight == 1 else budget / 100 * (0.9 + 0.1 * weight) / (0.1 * weight) * heavy
        luck = random.random(rows)
        values = weights * ((luck < lost).astype(float) - (luck > 1 - won))
        times = random.multinomial(rows, np.full(rows, 1 / rows), 200)
        drawn = np.sort(100 * (times @ values) / (times @ weights))
        drop = Resampled.of(rows, 100 * values.sum() / weights.sum(), drawn.tolist(), 100 * weights.max() / weights.sum())
        passed += drop.most(0.9) <= budget
    assert passed / rounds <= 0.1


def test_nothing_is_proved_by_a_few_rows_that_do_not_differ() -> None:
    for metric in ("recall@1", "mrr"):
        assert not decide(GatePolicy(max_accuracy_drop=0), places(30, 0, metric)).allowed
        decision = decide(POLICY, places(30, 0, metric))
        assert decision.rows_needed is not None
        assert "rows of the report split would settle it at this rate; there were 30." in decision.reasons[0]
        assert decide(POLICY, places(decision.rows_needed, 0, metric)).allowed
        assert not decide(POLICY, places(int(0.98 * decision.rows_needed), 0, metric)).allowed
