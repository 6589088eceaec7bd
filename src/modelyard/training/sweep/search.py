"""The one door to Optuna: what to try next (TPE), and whether a trial is hopeless (asynchronous successive halving).

`run` holds one `Search`. All it knows it was told, so that telling it the same in the same order makes it the same again; draws
depend on the seed, the trial's number and what was told before. Scores are losses here: less is better.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from modelyard.training.sweep.space import Choice, Parameter, points, size

optuna.logging.set_verbosity(optuna.logging.ERROR)
# Draws for one trial until they count as exhausted; then the first point that was not tried yet is taken.
_DRAWS = 20


class Search:
    """Trials are numbered from 0 in the order they were suggested or recalled."""

    def __init__(self, space: Mapping[str, Parameter], *, seed: int, grace: int, factor: int) -> None:
        self._space, self._seed = space, seed
        self._distributions = {name: _distribution(one) for name, one in space.items()}
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=grace, reduction_factor=factor)
        self._study = optuna.create_study(direction="minimize", pruner=pruner, sampler=self._sampler(0, 0))
        self._trials: list[optuna.Trial] = []
        self._steps: dict[int, int] = {}
        self._tried: list[dict[str, Any]] = []

    def suggest(self) -> dict[str, Any] | None:
        """The next trial's parameters, unlike those of every other; None where every point was tried."""
        number = len(self._trials)
        if number >= size(self._space):
            return None
        for draw in range(_DRAWS):
            self._study.sampler = self._sampler(number, draw)
            trial = self._study.ask(self._distributions)
            drawn = {name: _value(self._space[name], trial.params[name]) for name in self._space}
            if drawn not in self._tried:
                self._trials.append(trial)
                self._tried.append(drawn)
                return drawn
            self._study.tell(trial, state=TrialState.FAIL)
        left = next(point for point in points(self._space) if point not in self._tried)
        self.recall(left)
        return left

    def recall(self, parameters: Mapping[str, Any]) -> None:
        """Note a trial that was suggested by an earlier one of these."""
        known = {name: _key(self._space[name], value) for name, value in parameters.items()}
        self._study.enqueue_trial(known)
        self._trials.append(self._study.ask(self._distributions))
        self._tried.append(dict(parameters))

    def report(self, number: int, epoch: int, loss: float) -> bool:
        """Note what a trial came to at an epoch; whether it should be stopped. A step back in its epochs is none."""
        if epoch <= self._steps.get(number, 0):
            return False
        self._steps[number] = epoch
        self._trials[number].report(loss, epoch)
        return bool(self._trials[number].should_prune())

    def end(self, number: int, loss: float | None, *, stopped: bool = False) -> None:
        """A trial has ended: at `loss`, early, or without one."""
        if stopped and number in self._steps:
            self._study.tell(self._trials[number], state=TrialState.PRUNED)
        elif stopped or loss is None:
            self._study.tell(self._trials[number], state=TrialState.FAIL)
        else:
            self._study.tell(self._trials[number], loss)

    def _sampler(self, number: int, draw: int) -> optuna.samplers.BaseSampler:
        """Trials that still run count as bad ones, so that those beside them look elsewhere."""
        seed = int(np.random.SeedSequence([self._seed, number, draw]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _distribution(one: Parameter) -> BaseDistribution:
    if isinstance(one, Choice):
        return CategoricalDistribution(range(len(one.values)))
    if one.whole:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _value(one: Parameter, drawn: Any) -> Any:
    return one.values[drawn] if isinstance(one, Choice) else drawn


def _key(one: Parameter, value: Any) -> Any:
    return one.values.index(value) if isinstance(one, Choice) else value
