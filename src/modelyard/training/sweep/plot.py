"""A sweep in one picture: each trial's curve, and the score over each parameter. `run` calls it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelyard.training.sweep.picture import panels, save
from modelyard.training.sweep.space import Choice, Parameter
from modelyard.training.sweep.trials import Trial

_BEST, _DONE, _STOPPED = "#c0392b", "#34699a", "#b9c4cf"


def draw(folder: Path, trials: Sequence[Trial], space: dict[str, Parameter], metric: str, chosen: Trial) -> None:
    """Write `sweep.svg` and `sweep.png`. The same trials give the same bytes."""
    figure, axes = panels(1 + len(space))
    _curves(axes[0], trials, metric, chosen)
    for axis, (name, one) in zip(axes[1:], space.items(), strict=True):
        _scores(axis, trials, name, one, metric, chosen)
    save(figure, folder, "sweep")


def _curves(axis: Any, trials: Sequence[Trial], metric: str, chosen: Trial) -> None:
    for trial in sorted(trials, key=lambda trial: trial is chosen):
        points = [(epoch, values[metric]) for epoch, values in sorted(trial.curve.items()) if metric in values]
        if points:
            axis.plot(*zip(*points, strict=True), color=_colour(trial, chosen), linewidth=2 if trial is chosen else 1)
    axis.set(xlabel="epoch", ylabel=metric, title="trials; the best in red, stopped ones pale")
    axis.title.set_fontsize(9)


def _scores(axis: Any, trials: Sequence[Trial], name: str, one: Parameter, metric: str, chosen: Trial) -> None:
    for trial in trials:
        score = trial.score(metric)
        if score is not None:
            value = trial.parameters[name]
            place = one.values.index(value) if isinstance(one, Choice) else value
            axis.plot([place], [score], "o", color=_colour(trial, chosen), markersize=7 if trial is chosen else 4)
    if isinstance(one, Choice):
        axis.set_xticks(range(len(one.values)), [str(value) for value in one.values])
    elif one.log:
        axis.set_xscale("log")
    axis.set(xlabel=name, ylabel=metric)


def _colour(trial: Trial, chosen: Trial) -> str:
    return _BEST if trial is chosen else _DONE if trial.state == "succeeded" else _STOPPED
