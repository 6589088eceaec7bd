"""Whether a trial release is worse than the stable one: counts of comparisons to a verdict, at any moment, as often as asked.

Gateways count with `Pairing` and write what came of it to the database; control adds the counts up and asks `judge`, which is
a pure function of them. Nothing here knows a release, a clock or a database.

Each signal is two counts: `n` comparisons that tell something, `k` of them against the trial. While the trial is no worse, each
next one is against it with a probability of at most p0, whatever came before. A bet against that is worth `e_value`: expected
to stay at most 1, so it ever reaches E with a probability of at most 1/E (Ville, *Étude critique de la notion de collectif*,
1939), however often one looks and whenever one stops (Grünwald, de Heide, Koolen, *Safe testing*, JRSS B 86, 2024). With
several signals each must reach as many times more.

`errors` and `feedback` are McNemar's test (*Psychometrika* 12, 1947): calls that ended alike on both sides tell nothing. Each
trial call is held against m stable ones, in blocks (Turner, Ly, Grünwald, *Generic E-variables for exact sequential k-sample
tests*, JSPI 230, 2024): of the failures of a block, the trial's part is 1 in m + 1. Several failures of one block are drawn
without replacement, which is less spread than a bet on each by itself allows for (Hoeffding, JASA 58, 1963, theorem 4).
`latency` asks whether the trial took longer than the median of its m, so m is odd: of calls alike, half do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Literal, TypeAlias

from pydantic import Field, field_validator

from modelyard.kinds import Config

# How many stable outcomes one of the trial is held against. More than nine tell little that nine do not.
Stables: TypeAlias = Literal[1, 3, 5, 7, 9]
_MANY: tuple[Stables, ...] = (9, 7, 5, 3)
# Of the stable outcomes that random routing brings, how many are planned with, so that a trial one seldom waits in vain.
_PLANNED = 0.8
# What is bet on: that the odds of a comparison being against the trial are so many times what they may be. A bet that is half
# or twice as bold as would be best loses little; benchmarks/rollback.py has what these detect, and how soon.
_ODDS = (1.5, 2.25, 3.5, 5.0, 10.0)
_LARGEST = 700.0  # exp of more than about 709 is no float
# A new release's first calls are slow for reasons that pass: caches, memory first touched, kernels chosen.
_WARM_CALLS = 20
_SLACK_SECONDS = 0.0002
_FAILED = math.inf
_WAITING_TRIALS = 16
_KEPT_STABLES = 64
# Replicas of a trial lost in a row, none of which had answered a call.
_USELESS = 5


class Signal(StrEnum):
    errors = "errors"
    latency = "latency"
    agreement = "agreement"
    feedback = "feedback"


class Policy(Config):
    """What a trial release may do before it is taken back. `stables_per_trial` (see `stables`) belongs to the counts: evidence
    that was counted with another cannot be added."""

    signals: tuple[Signal, ...] = Field(default=tuple(Signal), min_length=1, description="what the releases are compared by")
    min_agreement: float = Field(default=0.97, ge=0.5, le=0.999, description="the least part of answers that must agree")
    max_slowdown: float = Field(default=1.2, ge=1, le=100, description="how many times longer a call may take")
    false_alarms: float = Field(
        default=0.01, gt=0, le=0.5, description="the most risk of taking back a release that is as good"
    )
    stables_per_trial: Stables = Field(default=1, description="stable outcomes that each trial outcome is held against")

    @field_validator("signals")
    @classmethod
    def _each_once(cls, signals: tuple[Signal, ...]) -> tuple[Signal, ...]:
        return tuple(signal for signal in Signal if signal in signals)

    @property
    def needed(self) -> float:
        """The e-value at which a signal is an alarm: all of them together raise false ones with the probability allowed."""
        return len(self.signals) / self.false_alarms

    def allowed(self, signal: Signal) -> float:
        """p0: how probably a comparison is against a trial release that is just good enough."""
        match signal:
            case Signal.errors:
                return 1 / (1 + self.stables_per_trial)
            case Signal.agreement:
                return 1 - self.min_agreement
            case _:
                return 0.5


@dataclass(frozen=True, slots=True)
class Tally:
    """`k` of `n` comparisons were against the trial."""

    n: int = 0
    k: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.n + other.n, self.k + other.k)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a trial release; several gateways' is added: `sum(parts, Evidence())`.

    `errors`: failures in blocks that did not end alike, the trial's among them. `latency`: blocks in which the trial answered,
    those in which it was too slow. `agreement`: calls compared, those that disagreed, a call of many rows by the part of them.
    `feedback`: pairs of labelled answers of which one was wrong, those in which the trial's was."""

    errors: Tally = Tally()
    latency: Tally = Tally()
    agreement: Tally = Tally()
    feedback: Tally = Tally()

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.errors + other.errors,
            self.latency + other.latency,
            self.agreement + other.agreement,
            self.feedback + other.feedback,
        )

    def of(self, signal: Signal) -> Tally:
        found: Tally = getattr(self, signal.value)
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reason` is a sentence for people; of a release that is kept it says what speaks most against it, if anything does.
    `signal` is what that is of, `e_value` and `needed` how much it says and how much it must."""

    action: Literal["keep", "roll back"]
    signal: Signal
    tally: Tally
    e_value: float
    needed: float
    reason: str

    @property
    def rolls_back(self) -> bool:
        return self.action == "roll back"


def stables(share: float) -> Stables:
    """How many stable outcomes there are for each of a trial that gets `share` of the calls; of a shadow that gets a copy of
    `part` of them, part / (1 + part)."""
    return next((many for many in _MANY if many * share <= _PLANNED * (1 - share)), 1)


def judge(evidence: Evidence, policy: Policy, trial: str = "trial") -> Verdict:
    """The verdict on all that is known so far; `trial` is what people call the release: 'canary', 'shadow'."""
    values = {signal: e_value(evidence.of(signal), policy.allowed(signal)) for signal in policy.signals}
    worst = max(values, key=lambda signal: values[signal])
    value, tally = values[worst], evidence.of(worst)
    alarm = value >= policy.needed
    reason = _told(worst, tally, policy, trial)
    if alarm:
        reason += f" Were it good enough, chance would show as much at most once in {_rounded(value)} times."
    return Verdict("roll back" if alarm else "keep", worst, tally, value, policy.needed, reason)


def unsteady(losses: Tally, useless: int, policy: Policy, trial: str = "trial") -> str | None:
    """Why a trial is taken back for the replicas it loses, judged apart from the signals, with as much risk; None where it is
    not. `losses`: of both releases, and of the trial, which has no more replicas than the stable one; `useless`: the trial's in
    a row that had answered nothing."""
    if useless >= _USELESS:
        return f"The {trial} lost {useless} replicas in a row that had not answered a call."
    if e_value(losses, 0.5) * policy.false_alarms < 1:
        return None
    return f"Of {losses.n} replicas that were lost meanwhile {losses.k} were the {trial}'s; half would be its part."


def e_value(tally: Tally, p0: float) -> float:
    """What one has of 1 bet against "each comparison is against the trial with a probability of at most `p0`": a mixture, equal
    parts on each of the odds above. Starts at 1; e^700 stands for all that is larger. Depends on the two counts alone."""
    terms = [start + tally.k * against + (tally.n - tally.k) * for_it for start, against, for_it in _bets(p0)]
    most = max(terms)
    return math.exp(min(_LARGEST, most + math.log(sum(math.exp(term - most) for term in terms))))


@lru_cache(maxsize=64)
def _bets(p0: float) -> Sequence[tuple[float, float, float]]:
    """Of each part: the logarithm of its size, and what a comparison against the trial and one for it add to that."""
    bets = []
    for odds in _ODDS:
        p = odds * p0 / (odds * p0 + 1 - p0)
        bets.append((-math.log(len(_ODDS)), math.log(p / p0), math.log((1 - p) / (1 - p0))))
    return bets


def _told(signal: Signal, tally: Tally, policy: Policy, trial: str) -> str:
    n, k, many = tally.n, tally.k, policy.stables_per_trial
    if n == 0:
        return f"Nothing speaks against the {trial} so far."
    expected = "half" if many == 1 else f"1 in {many + 1}"
    told: Mapping[Signal, str] = {
        Signal.errors: f"The {trial} failed in {k} of {n} failures among calls compared; {expected} would be its part.",
        Signal.latency: f"The {trial} took more than {policy.max_slowdown:g} times as long in {k} of {n} comparisons.",
        Signal.agreement: f"The {trial} answered differently in {k} of {n} calls; {1 - policy.min_agreement:.3g} may be.",
        Signal.feedback: f"The {trial} was wrong in {k} of {n} labelled pairs of which one was; half would be its part.",
    }
    return told[signal]


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value < 1e6 else "a million"


class Pairing:
    """What one gateway counts of one trial release: say each outcome as it comes. A failure is one of ours, not the caller's.

    A trial outcome waits until there are as many unused stable ones as it is held against, and takes the most recent; of
    several that wait the newest goes first: so both saw the same load. Which are taken depends on their order alone. For
    feedback, count wrong answers as failures in a `Pairing` of its own with one stable outcome each: its `errors` are that
    tally."""

    __slots__ = (
        "_compared",
        "_different",
        "_errors",
        "_failed",
        "_many",
        "_slow",
        "_slowdown",
        "_stables",
        "_timed",
        "_trials",
        "_warm",
    )

    def __init__(self, policy: Policy) -> None:
        self._many: int = policy.stables_per_trial
        self._slowdown = policy.max_slowdown
        # Seconds; infinity for a failure, and of a trial -1 where its time is not to count.
        self._stables: list[float] = []
        self._trials: deque[float] = deque(maxlen=_WAITING_TRIALS)
        self._warm = _WARM_CALLS
        self._errors = self._failed = self._timed = self._slow = self._compared = 0
        self._different = 0.0

    def stable(self, failed: bool, seconds: float) -> None:
        stables = self._stables
        stables.append(_FAILED if failed else seconds)
        if self._trials:
            if len(stables) >= self._many:
                self._compare(self._trials.pop())
        elif len(stables) > _KEPT_STABLES:
            del stables[: _KEPT_STABLES // 2]

    def trial(self, failed: bool, seconds: float) -> None:
        if self._warm:
            self._warm -= 1
            seconds = -1.0
        if failed:
            seconds = _FAILED
        if len(self._stables) >= self._many:  # then no other waits
            self._compare(seconds)
        else:
            self._trials.append(seconds)

    def agreed(self, rows: int, disagreeing: int) -> None:
        """One call's answers compared. Rows of one call are seldom independent, so together they count as one comparison; a
        bet on the part that disagrees is never worth more than one on a coin with that chance."""
        if rows > 0:
            self._compared += 1
            self._different += disagreeing / rows

    @property
    def evidence(self) -> Evidence:
        """The totals so far; no count ever falls."""
        return Evidence(
            errors=Tally(self._errors, self._failed),
            latency=Tally(self._timed, self._slow),
            agreement=Tally(self._compared, int(self._different)),
        )

    def _compare(self, seconds: float) -> None:
        """A trial outcome with the newest stable ones, which are used up."""
        many, stables = self._many, self._stables
        if many == 1:
            median = stables.pop()
            failures = int(median == _FAILED)
        else:
            block = stables[-many:]
            del stables[-many:]
            block.sort()
            median = block[many // 2]
            failures = block.count(_FAILED) if block[-1] == _FAILED else 0
        if seconds == _FAILED:
            if failures < many:
                self._errors += failures + 1
                self._failed += 1
            return
        self._errors += failures
        if seconds >= 0:
            self._timed += 1
            if seconds > self._slowdown * median + _SLACK_SECONDS:
                self._slow += 1
