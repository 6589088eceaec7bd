"""What a search tries next: what costs no training first, then what Optuna's Gaussian processes expect most of for the front.

The one door of this room to Optuna. All it knows it was told, so that telling it the same in the same order makes it the same
again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState

from modelyard.optimisation.search.front import MODELLED
from modelyard.training.sweep.space import Choice

optuna.logging.set_verbosity(optuna.logging.ERROR)
# Of the trials, the part that may go to what needs no training, before anything is modelled.
_CHEAP = 1 / 3
# Points at random before anything is modelled, where the cheap ones are fewer.
_LEAST = 4
# Points that are looked at for each suggestion, and draws of the model that each is judged by.
_POINTS, _DRAWS = 256, 32


class Proposer:
    """`candidates`: points that come to different steps, `costs` their epochs. Trials are numbered from 0 in the order they
    were suggested or recalled."""

    def __init__(
        self, space: Mapping[str, Choice], candidates: Sequence[dict[str, Any]], costs: Sequence[int], trials: int, seed: int
    ) -> None:
        self._space = {name: one for name, one in space.items() if len(one.values) > 1}
        self._left = [dict(point) for point in candidates]
        self._seed, self._trials = seed, list[optuna.Trial]()
        cheap = [point for point, cost in zip(self._left, costs, strict=True) if not cost]
        most = max(1, int(trials * _CHEAP))
        self._first = cheap[:most]
        others = [point for point in self._left if point not in self._first]
        order = np.random.default_rng(seed).permutation(len(others))
        self._first += [others[int(at)] for at in order[: max(0, min(_LEAST, trials) - len(self._first))]]
        self._distributions = {name: _distribution(one) for name, one in self._space.items()}
        self._study = optuna.create_study(directions=["minimize"] * len(MODELLED), sampler=self._sampler(0))

    def suggest(self, affordable: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> dict[str, Any] | None:
        """The next trial's point, unlike those of every other; None where all that is `affordable` was tried."""
        left = [point for point in self._left if affordable(point)]
        if not left:
            return None
        point = next((point for point in self._first if point in left), None) or self._nearest(self._drawn(), left)
        self.recall(point)
        return dict(point)

    def recall(self, point: Mapping[str, Any]) -> None:
        """Note a trial that was suggested, by this one or by an earlier one of these."""
        self._left.remove(dict(point))
        self._study.enqueue_trial({name: _key(one, point[name]) for name, one in self._space.items()})
        self._trials.append(self._study.ask(self._distributions))

    def end(self, number: int, losses: Sequence[float] | None) -> None:
        """A trial has ended with these losses by axis, or without any."""
        if losses is None:
            self._study.tell(self._trials[number], state=TrialState.FAIL)
        else:
            self._study.tell(self._trials[number], list(losses))

    def _drawn(self) -> dict[str, Any]:
        """What the model asks for, whether it was tried or not."""
        self._study.sampler = self._sampler(len(self._trials))
        trial = self._study.ask(self._distributions)
        drawn = dict(trial.params)
        self._study.tell(trial, state=TrialState.FAIL)  # it is never run as such: the trial is the point nearest to it
        return drawn

    def _nearest(self, drawn: Mapping[str, Any], left: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The point that differs least: by a whole option where it is a word, by the steps between where it is a number."""

        def away(point: Mapping[str, Any]) -> float:
            return sum(_away(one, _key(one, point[name]), drawn[name]) for name, one in self._space.items())

        return min(left, key=away)

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        seed = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=1, deterministic_objective=False)
        # Its own numbers are for endless spaces: on four axes they take gigabytes as the front grows.
        sampler._n_preliminary_samples, sampler._n_qmc_samples_ehvi = _POINTS, _DRAWS
        return sampler


def _numbers(one: Choice) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in one.values)


def _distribution(one: Choice) -> BaseDistribution:
    """Numbers by their place in the list, in which they rise or fall; else one of several words."""
    return IntDistribution(0, len(one.values) - 1) if _numbers(one) else CategoricalDistribution(range(len(one.values)))


def _key(one: Choice, value: Any) -> int:
    """The place of a value in the list."""
    return one.values.index(value)


def _away(one: Choice, place: int, drawn: int) -> float:
    return abs(place - drawn) / (len(one.values) - 1) if _numbers(one) else float(place != drawn)
