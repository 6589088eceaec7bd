"""What is tried next and what is hopeless: the same for the same history, within the space, never twice, never the best."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.training.sweep.search import Search
from modelyard.training.sweep.space import parse

SPACE = parse("lr=1e-4..1e-1:log,width=[16,32],epochs=3..5")
LOSSES = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


def search(space: Any = SPACE, seed: int = 0, grace: int = 1, factor: int = 3) -> Search:
    return Search(space, seed=seed, grace=grace, factor=factor)


def play(one: Search, losses: list[float]) -> list[dict[str, Any]]:
    """Trials one after the other, each of which ends at once at the next loss."""
    given = []
    for number, loss in enumerate(losses):
        given.append(one.suggest())
        one.report(number, 1, loss)
        one.end(number, loss)
    return given  # type: ignore[return-value]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31 - 1), LOSSES)
def test_the_same_history_leads_to_the_same_trials_within_the_space(seed: int, losses: list[float]) -> None:
    first, again = play(search(seed=seed), losses), play(search(seed=seed), losses)
    assert first == again
    assert all(1e-4 <= one["lr"] <= 1e-1 and one["width"] in (16, 32) and one["epochs"] in (3, 4, 5) for one in first)


@settings(max_examples=10, deadline=None)
@given(LOSSES)
def test_a_search_that_was_told_again_goes_on_as_the_first_would(losses: list[float]) -> None:
    first, again = search(), search()
    given = play(first, losses)
    for parameters in given:
        again.recall(parameters)
    for number, loss in enumerate(losses):
        again.report(number, 1, loss)
        again.end(number, loss)
    assert again.suggest() == first.suggest()


def test_every_point_of_a_finite_space_is_tried_once() -> None:
    one = search(parse("a=[x,y,z],b=1..4"))
    tried = [one.suggest() for _ in range(13)]
    assert tried[12] is None
    assert len({tuple(point.values()) for point in tried[:12] if point}) == 12


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9, unique=True), st.integers(2, 4))
def test_of_those_that_reach_a_rung_the_best_so_far_goes_on(losses: list[float], factor: int) -> None:
    one = search(factor=factor)
    for number, loss in enumerate(losses):
        one.suggest()
        hopeless = one.report(number, 1, loss)
        rank = sorted(losses[: number + 1]).index(loss)
        assert hopeless == (rank >= max(1, (number + 1) // factor))


def test_nothing_is_stopped_within_its_grace_and_an_epoch_told_twice_counts_once() -> None:
    one = search(grace=4)
    for number, loss in enumerate((0.1, 0.9)):
        one.suggest()
        assert not any(one.report(number, epoch, loss) for epoch in (1, 2, 3, 2, 1))
    assert not one.report(0, 4, 0.1)
    assert one.report(1, 4, 0.9)
    one.end(1, 0.9, stopped=True)
    one.end(0, None)
