"""What events make of a trial, which one is best, and when there is room for another."""

from typing import Any

import pytest

from modelyard.training.sweep.trials import Trial, best, choose_metric, in_words, loss, room


def trial(number: int, *events: dict[str, Any], stopped: bool = False) -> Trial:
    one = Trial(number, {"lr": 0.1}, f"j{number}", stopped)
    for seq, event in enumerate(events, start=1):
        one.take({"seq": seq, "at": f"2030-01-01T00:00:{seq:02}+00:00", **event})
    return one


def state(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "state", "state": name, **more}


def metric(step: int, **values: Any) -> dict[str, Any]:
    return {"type": "metric", "step": step, "values": values}


def test_events_make_the_row() -> None:
    one = trial(2, state("queued"), state("running"), metric(1, a=0.5, b=None), metric(2, a=0.75), state("succeeded"))
    assert one.row("a") == {
        "number": 2, "parameters": {"lr": 0.1}, "job": "j2", "state": "succeeded", "epoch": 2, "score": 0.75, "seconds": 3.0,
        "error": None,
    }  # fmt: skip
    assert (one.after, one.curve[1], one.score("b", 1)) == (5, {"a": 0.5}, None)


def test_a_cancelled_job_is_a_stopped_trial_only_where_the_sweep_asked() -> None:
    assert trial(0, state("cancelled"), stopped=True).state == "stopped"
    assert trial(0, state("cancelled")).state == "cancelled"
    assert trial(0, state("failed", error={"code": "x", "message": "why"})).error == "why"


def test_what_is_kept_comes_back() -> None:
    one = trial(3, state("running"), stopped=True)
    assert Trial.kept(one.keep()).keep() == one.keep()


def test_the_best_is_the_first_of_the_best_that_came_to_their_end() -> None:
    ends = [metric(1, acc_loss=3.0, accuracy=0.5), state("succeeded")]
    trials = [trial(0, metric(1, accuracy=0.9), state("failed")), trial(1, *ends), trial(2, *ends)]
    assert best(trials, "accuracy") is trials[1]
    assert best(trials[:1], "accuracy") is None
    assert best(trials, None) is None


def test_of_accuracy_more_is_better_of_loss_less() -> None:
    assert loss("select_accuracy", 0.9) < loss("select_accuracy", 0.8)
    assert loss("select_loss", 0.1) < loss("select_loss", 0.2)
    assert choose_metric(["select_loss", "select_accuracy"]) == "select_accuracy"
    assert choose_metric(["loss"]) is None


def test_what_is_better_may_be_said() -> None:
    assert loss("select_f2", 0.9, "maximise") < loss("select_f2", 0.8, "maximise")
    assert loss("accuracy", 0.1, "minimise") < loss("accuracy", 0.2, "minimise")
    trials = [trial(n, metric(1, select_f2=n / 2), state("succeeded")) for n in range(2)]
    assert best(trials, "select_f2") is trials[0]
    assert best(trials, "select_f2", "maximise") is trials[1]


@pytest.mark.parametrize(
    ("states", "parallel", "there_is"),
    [
        ([], 1, True),
        (["running"], 1, False),
        (["running", "succeeded"], 2, True),
        (["running", "queued"], None, False),
        (["running", "starting"], None, True),
    ],
)
def test_there_is_room_where_fewer_run_than_may_and_none_waits(states: list[str], parallel: int | None, there_is: bool) -> None:
    assert room([trial(n, state(name)) for n, name in enumerate(states)], parallel) is there_is


def test_parameters_in_words() -> None:
    assert in_words({"lr": 0.0031234, "width": 32, "optimiser": "sgd"}) == "lr=0.00312 width=32 optimiser=sgd"
