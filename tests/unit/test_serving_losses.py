"""What follows from a lost replica: pure, and what must never come of any history of losses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelyard.serving.losses import ATTEMPTS, Loss, after, pause
from modelyard.serving.types import DeploymentState

PENDING, READY, FAILED = DeploymentState.pending, DeploymentState.ready, DeploymentState.failed
losses = st.builds(Loss, *[st.booleans()] * 5)


def follow(*history: Loss) -> tuple[DeploymentState, list[float]]:
    """The state after these losses in a row, and the pauses between them."""
    failures, state, pauses = 0, PENDING, []
    for loss in history:
        state, failures, wait = after(failures, loss)
        pauses.append(wait.total_seconds())
    return state, pauses


def test_a_replica_that_worked_and_was_ended_from_outside_is_replaced_at_once_every_time() -> None:
    killed = Loss(useful=True, others=True, proven=True)
    assert follow(*[killed] * 20) == (READY, [0.0] * 20)


def test_what_was_counted_before_is_forgotten_once_one_was_of_use() -> None:
    young = Loss(others=True, proven=True)
    assert follow(young, young, young, Loss(useful=True, others=True, proven=True), young)[1] == [0.0, 0.5, 1.0, 0.0, 0.0]


def test_what_never_loads_is_given_up_and_what_is_damaged_at_once() -> None:
    assert follow(*[Loss()] * ATTEMPTS) == (FAILED, [0.0, 0.5, 0.0])
    assert follow(*[Loss()] * (ATTEMPTS - 1))[0] == PENDING
    assert follow(Loss(hopeless=True))[0] == FAILED


def test_an_outage_of_the_store_is_not_the_models_fault() -> None:
    state, pauses = follow(*[Loss(outage=True)] * 50)
    assert state == PENDING
    assert set(pauses) == {1.0}
    assert after(2, Loss(outage=True)).failures == 2


def test_a_crash_loop_is_answered_with_pauses_that_are_bounded() -> None:
    assert [pause(n).total_seconds() for n in (0, 1, 2, 3, 4, 20, 1000)] == [0, 0, 0.5, 1, 2, 30, 30]


@given(st.lists(losses, max_size=30))
def test_no_release_fails_that_serves_or_has_served(history: list[Loss]) -> None:
    failures = 0
    for loss in history:
        state, failures, wait = after(failures, loss)
        assert state != FAILED or not (loss.others or loss.proven or loss.useful or loss.outage)
        assert (state == READY) == (loss.others)
        assert wait.total_seconds() <= 30
        assert not (loss.useful and wait)
