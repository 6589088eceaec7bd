"""What a search tries next: the point by which the front is expected to grow most.

A Gaussian process a figure, over the finite space itself: a point's figures are taken for a sum of what each of its options
does, and a little of what each two do together. Of its numbers one is fitted, how much quality differs at all, and what a cut
loses is learned; the ten trials of a search tell no more. What is known of costs before any trial (`know`) leaves only the
quality to find out. All it knows it was told, so that telling it the same in the same order makes it the same again.

Expected improvement of the hypervolume (M. Emmerich, 2005) by draws of the processes, volumes by sampling (J. Bader and
E. Zitzler, 2011).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from modelyard.optimisation.search.front import MODELLED
from modelyard.optimisation.search.point import Point
from modelyard.tensors import Array
from modelyard.training.sweep.space import Choice

_CUTS = ("channels", "heads", "blocks")
# What is believed before anything was seen, of log2(1 + points lost) and of the logarithms of costs: the deviations (of the
# first, once something was seen, the likeliest of some), how much of them is of two options together, the noise of a figure,
# and what a whole cut would lose, as a mean and a deviation.
_DEVIATIONS, _LIKELY = (1.0, 0.7, 0.7, 1.0), (0.75, 1.0, 1.5, 2.0, 2.5)
_TOGETHER, _NOISE, _LOST, _LOST_BY = 0.1, 0.03, 5.0, 2.0
_COVERED = 3  # trials that are to try what was not tried at all, where no costs are known
# Points that are looked at for each suggestion, draws that each is judged by, and samples of the volume.
_POINTS, _DRAWS, _SAMPLES = 256, 32, 8192


class Proposer:
    """`candidates`: points that come to different steps, `costs` their epochs; `worst`: points lost that are no better or worse
    than any more. Trials are numbered from 0 in the order they were suggested or recalled."""

    def __init__(
        self, space: Mapping[str, Choice], candidates: Sequence[dict[str, Any]], costs: Sequence[int], seed: int, worst: float
    ) -> None:
        self._space = {name: one for name, one in space.items() if len(one.values) > 1}
        self._points, self._costs, self._seed, self._worst = [dict(point) for point in candidates], costs, seed, worst
        places = [[one.values.index(point[name]) for name, one in self._space.items()] for point in self._points]
        self._places = np.array(places, np.float64).reshape(len(self._points), len(self._space))
        cuts = [max((float(point.get(name, 0.0)) for name in _CUTS), default=0.0) for point in self._points]
        self._cuts = np.array(cuts)
        self._steps = np.array([len(one.values) - 1 if _numbers(one) else 0.0 for one in self._space.values()])
        self._original = next((at for at, point in enumerate(self._points) if not Point(**point).steps()), None)
        self._trials: list[int] = []  # the candidate of each
        self._seen: dict[int, Array] = {}  # the figures of candidates
        self._known: dict[int, Array] = {}  # their costs alone

    def know(self, costs: Sequence[Sequence[float] | None]) -> None:
        """Of each candidate the logarithms of its costs, as many as `end` takes after the first; None where not known."""
        self._known = {at: np.array(own) for at, own in enumerate(costs) if own is not None}

    def suggest(self, affordable: Callable[[Mapping[str, Any]], bool] = lambda _: True) -> dict[str, Any] | None:
        """The next trial's point, unlike those of every other; None where all that is `affordable` was tried."""
        left = [at for at, point in enumerate(self._points) if at not in self._trials and affordable(point)]
        if not left:
            return None
        random = np.random.default_rng([self._seed, len(self._trials)])
        if len(left) > _POINTS:
            left = sorted(random.choice(left, _POINTS, replace=False).tolist())
        if not self._trials:  # something to show soon
            left = [at for at in left if not self._costs[at]] or left
        elif not self._known and len(self._trials) < _COVERED:
            left = self._covering(left)
        point = self._points[left[int(self._gains(left, random).argmax())]]
        self.recall(point)
        return dict(point)

    def recall(self, point: Mapping[str, Any]) -> None:
        """Note a trial that was suggested, by this one or by an earlier one of these."""
        self._trials.append(self._points.index(dict(point)))

    def end(self, number: int, losses: Sequence[float] | None) -> None:
        """A trial has ended with these losses by axis: points, and logarithms of costs over the original's, NaN where they are
        not known; or without any."""
        if losses is not None:
            self._seen[self._trials[number]] = np.array([_squashed(losses[0]), *losses[1:]])

    def _covering(self, left: Sequence[int]) -> list[int]:
        """Those that have most options which no trial has."""
        tried = self._places[self._trials]
        new = (self._places[left][:, None] != tried[None]).all(axis=1).sum(axis=1)
        return [at for at, count in zip(left, new, strict=True) if count == new.max()]

    def _gains(self, left: Sequence[int], random: np.random.Generator) -> Array:
        """FP64 [left]: the part of the volume that each is expected to win beyond what was seen and is underway."""
        underway = [at for at in self._trials if at not in self._seen]
        drawn = self._drawn([*left, *underway], random)
        whole = [figures for figures in self._seen.values() if np.isfinite(figures).all()]
        seen = self._axes(np.array([*whole, np.zeros(len(MODELLED))]))  # the original is there anyway
        every = np.concatenate([drawn.reshape(-1, len(MODELLED)), seen])
        low, high = every.min(axis=0), every.max(axis=0) + 1e-9
        low[0], high[0] = 0.0, self._worst
        samples = random.uniform(low, high, (_SAMPLES, len(MODELLED)))
        free = samples[~_dominated(samples, seen)]
        gains = np.zeros(len(left))
        for draw in drawn:
            mine = free[~_dominated(free, draw[len(left) :])]
            gains += [float((mine >= own).all(axis=1).sum()) for own in draw[: len(left)]]
        return gains + 1e-9 * random.random(len(left))

    def _drawn(self, at: Sequence[int], random: np.random.Generator) -> Array:
        """FP64 [draws, candidates, axes], as they may turn out: points lost and logarithms of costs."""
        axes = []
        for axis, deviation in enumerate(_DEVIATIONS):
            told = self._told(axis, at)
            seen, values = list(told), np.array(list(told.values()))
            cuts = self._cuts if axis == 0 else np.zeros(len(self._points))
            off, among = values - _LOST * cuts[seen], self._alike(seen, seen) + _NOISE * np.eye(len(seen))
            there, here = _LOST_BY * cuts[seen], _LOST_BY * cuts[at]
            if axis == 0 and seen:
                deviation = _likeliest(among, np.outer(there, there), off)
            covariance = deviation**2 * among + np.outer(there, there)
            across = deviation**2 * self._alike(at, seen) + np.outer(here, there)
            weights = np.linalg.solve(covariance, across.T).T
            mean = _LOST * cuts[at] + weights @ off
            spread = deviation**2 * self._alike(at, at) + np.outer(here, here) - weights @ across.T
            scale, directions = np.linalg.eigh((spread + spread.T) / 2)
            root = directions * np.sqrt(np.maximum(scale, 0.0))
            axes.append(mean + random.standard_normal((_DRAWS, len(at))) @ root.T)
        return self._axes(np.stack(axes, axis=-1))

    def _told(self, axis: int, at: Sequence[int]) -> dict[int, float]:
        """What is known of an axis, by candidate: of trials, of the original, and of costs before any trial, those of the
        candidates `at` and of one for each shape."""
        told = {} if self._original is None else {self._original: 0.0}
        if axis:
            shapes = {costs.tobytes(): candidate for candidate, costs in self._known.items()}
            chosen = {candidate for candidate in (*at, *shapes.values()) if candidate in self._known}
            told |= {candidate: float(self._known[candidate][axis - 1]) for candidate in sorted(chosen)}
        return told | {at: float(figures[axis]) for at, figures in self._seen.items() if np.isfinite(figures[axis])}

    def _alike(self, one: Sequence[int], other: Sequence[int]) -> Array:
        """FP64 [one, other]: the covariance of candidates, 1 of equal ones: by each option that is the same, or by how near it
        is where it is a number (its place in the list, in which numbers rise or fall), and by each two of them."""
        away = np.abs(self._places[one][:, None] - self._places[other][None])
        each = np.where(self._steps > 0, np.exp(-away / np.maximum(self._steps, 1)), away == 0)
        alone, squares = each.sum(axis=-1), (each**2).sum(axis=-1)
        many = max(1, len(self._steps))
        found: Array = (alone + _TOGETHER * (alone**2 - squares) / 2) / (many + _TOGETHER * many * (many - 1) / 2)
        return found

    def _axes(self, figures: Array) -> Array:
        """Points lost as they count: none where nothing is lost, and no more than the worst."""
        found = figures.copy()
        found[..., 0] = np.clip(2.0 ** found[..., 0] - 1, 0.0, self._worst)
        return found


def _likeliest(among: Array, more: Array, off: Array) -> float:
    """The deviation under which figures that are `off` the expected by so much are likeliest, where they vary together as
    `among`, times its square, and `more`; by little data, one near 1."""

    def likelihood(one: float) -> float:
        covariance = one**2 * among + more
        return -float(np.linalg.slogdet(covariance)[1] + off @ np.linalg.solve(covariance, off)) / 2 - math.log(one) ** 2

    return max(_LIKELY, key=likelihood)


def _squashed(lost: float) -> float:
    """So that fifty points are told from ten, and do not outweigh everything."""
    return float(np.log2(1 + max(0.0, lost)))


def _numbers(one: Choice) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in one.values)


def _dominated(samples: Array, points: Array) -> Array:
    """BOOL [samples]: some point is at least as good on every axis."""
    found = np.zeros(len(samples), bool)
    for point in points:
        found |= (samples >= point).all(axis=1)
    return found
