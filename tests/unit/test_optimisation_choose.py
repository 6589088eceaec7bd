from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.errors import Invalid
from modelyard.optimisation.choose import Measured, choose

FLOAT = Measured("fp32", True, 0.98, 0.96, 0.99, 0.0, -1.0, 1.0, 100, 9e6, 2.0, 3.0, 500.0)
INT8 = replace(FLOAT, variant="static-int8", accuracy=0.975, drop=0.5, size=30, memory=8e6, p50_ms=1.0, items_per_s=900.0)

figures = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-5, 5)
measured = st.builds(
    Measured,
    variant=st.sampled_from("abcdef"),
    verified=st.booleans(),
    accuracy=st.floats(0, 1),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    drop=figures,
    drop_low=figures,
    drop_high=figures,
    size=st.integers(0, 3),
    memory=figures,
    p50_ms=figures,
    p99_ms=figures,
    items_per_s=figures,
)
rows = st.lists(measured, max_size=6, unique_by=lambda m: m.variant)
goals = st.sampled_from(["latency", "throughput", "size", "memory"])


@given(rows, goals, st.floats(0, 5), st.randoms())
def test_the_choice_is_within_the_budget_best_and_independent_of_order(
    found: list[Measured], goal, budget: float, random
) -> None:
    fit = [m for m in found if m.verified and m.drop <= budget]
    cost = {
        "latency": lambda m: m.p50_ms,
        "throughput": lambda m: -m.items_per_s,
        "size": lambda m: m.size,
        "memory": lambda m: m.memory,
    }[goal]
    fit = [m for m in fit if math.isfinite(cost(m))]
    if not fit:
        with pytest.raises(Invalid):
            choose(found, goal, budget)
        return
    choice = choose(found, goal, budget)
    chosen = next(m for m in found if m.variant == choice.variant)
    assert chosen in fit
    assert cost(chosen) == min(map(cost, fit))
    assert set(choice.verdicts) == {m.variant for m in found}
    shuffled = list(found)
    random.shuffle(shuffled)
    assert choose(shuffled, goal, budget) == choice


@given(rows, goals, st.floats(0, 5), st.floats(0, 5))
def test_a_larger_budget_is_never_worse(found: list[Measured], goal, budget: float, more: float) -> None:
    try:
        choose(found, goal, budget)
    except Invalid:
        return
    assert choose(found, goal, budget + more).variant


def test_goals_differ_and_verdicts_say_why() -> None:
    slow_small = replace(INT8, variant="dynamic-int8", p50_ms=9.0, items_per_s=90.0, size=20)
    lossy = replace(INT8, variant="lossy", drop=1.1, p50_ms=0.1)
    other = replace(INT8, variant="other", verified=False)
    unmeasured = replace(INT8, variant="unmeasured", p50_ms=math.nan)
    choice = choose([FLOAT, INT8, slow_small, lossy, other, unmeasured], "latency", 1.0)
    assert choice.variant == "static-int8"
    assert choice.verdicts == {
        "fp32": "within the budget",
        "static-int8": "best latency within 1 points",
        "dynamic-int8": "within the budget",
        "lossy": "loses 1.10 points",
        "other": "not verified",
        "unmeasured": "not measured",
    }
    assert choose([FLOAT, INT8, slow_small], "size", 1.0).variant == "dynamic-int8"
    assert choose([FLOAT, INT8, slow_small], "throughput", 1.0).variant == "static-int8"
    light = replace(slow_small, variant="light", memory=7e6)
    assert choose([FLOAT, INT8, light, replace(light, variant="unknown", memory=math.nan)], "memory", 1.0).variant == "light"
    assert choose([FLOAT, INT8], "latency", 0.2).variant == "fp32"
    assert choose([FLOAT, INT8], "latency", INT8.drop).variant == "static-int8"


def test_ties_go_to_the_more_accurate_then_the_smaller_then_by_name() -> None:
    exact = replace(INT8, variant="z", accuracy=0.99)
    small = replace(INT8, variant="y", size=10)
    assert choose([INT8, exact], "latency", 1).variant == "z"
    assert choose([INT8, small], "latency", 1).variant == "y"
    assert choose([replace(INT8, variant="b"), replace(INT8, variant="a")], "latency", 1).variant == "a"


def test_none_within_the_budget_says_how_close_the_nearest_came() -> None:
    worse = replace(INT8, variant="worse", drop=9.0)
    with pytest.raises(Invalid, match=r"within 0\.1 points .* static-int8, loses 0\.50 \(interval -1\.00 to 1\.00\)"):
        choose([INT8, worse], "latency", 0.1)
    with pytest.raises(Invalid, match="No variant could be verified"):
        choose([replace(INT8, verified=False)], "latency", 1)
    with pytest.raises(Invalid, match="No variant could be verified"):
        choose([], "latency", 1)


def test_what_is_lost_may_be_counted_in_percent() -> None:
    lossy = replace(INT8, variant="lossy", drop=1.5, p50_ms=0.1)
    verdicts = choose([FLOAT, lossy], "latency", 1.0, "percent").verdicts
    assert (verdicts["fp32"], verdicts["lossy"]) == ("best latency within 1 percent", "loses 1.50 percent")
    with pytest.raises(Invalid, match=r"No variant stays within 1 percent of the original: the nearest, lossy, loses 1\.50"):
        choose([lossy], "latency", 1.0, "percent")
