"""The front of what is worth having."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelyard.optimisation.search.front import MODELLED, losses, pareto

FIGURE = st.sampled_from([0.0, 1.0, 2.0, 3.0, None, float("nan")])
ROWS = st.lists(st.fixed_dictionaries(dict.fromkeys((*MODELLED, "memory"), FIGURE)), max_size=12)


def place(row: dict[str, Any]) -> tuple[float, ...] | None:
    own, memory = losses(row), row["memory"]
    return None if own is None else (*own, memory if memory is not None and memory == memory else 9.0)


@given(ROWS)
def test_nothing_on_the_front_is_beaten_and_all_else_is(rows: list[dict[str, Any]]) -> None:
    on, points = pareto(rows), [place(row) for row in rows]
    for at, own in enumerate(points):
        beaten = own is None or any(
            other is not None and other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points
        )
        repeated = own in points[:at]
        assert on[at] == (not beaten and not repeated)


def test_more_rows_a_second_are_better_and_fewer_bytes() -> None:
    base = {"drop": 0.0, "p50_ms": 1.0, "items_per_s": 100.0, "size": 10}
    rows = [base, {**base, "items_per_s": 200.0}, {**base, "size": 5}, {**base, "drop": 1.0, "size": 4}, {**base, "size": 12}]
    assert pareto(rows) == [False, True, True, True, False]
    assert pareto([]) == []


def test_memory_is_an_axis_where_it_is_known() -> None:
    base = {"drop": 0.0, "p50_ms": 1.0, "items_per_s": 100.0, "size": 10}
    light, heavy, unknown = {**base, "size": 11, "memory": 1.0}, {**base, "memory": 2.0}, {**base, "memory": None}
    assert pareto([light, heavy]) == [True, True]
    assert pareto([unknown, heavy, light]) == [False, True, True]
    assert pareto([unknown, base]) == [True, False]  # equal, as what an older search left
    assert pareto([{**light, "drop": None}]) == [False]
    assert losses(light) == (0.0, 1.0, -100.0, 11.0)
