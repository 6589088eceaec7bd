"""The gate: whether a variant may be deployed, a pure function of a policy and of what an evaluation found.

It denies by default: what was not evaluated, cannot be read, or is not within the budget at the stated confidence is refused,
with the figures and with how many rows would settle it. Called by `serving.gating`, in control, which knows versions and
projects; this module knows neither, and loads nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from modelyard.kinds import Config
from modelyard.optimisation.evidence import NUMBERS, TOKENS, Drop, Evidence, Metric
from modelyard.optimisation.units import counted, units

SPLIT = "report"  # nothing was made or chosen by it
_MOST_TIMES = 1e6  # the seen rows, past which no number of rows is stated
_ALL = 100.0  # points: who allows these asks for nothing
_TOLD, _KEPT = 4, 20  # slices that a refusal names, that are kept with a decision


class GatePolicy(Config):
    """What a variant must be shown to keep. `max_accuracy_drop` over all rows, `max_slice_drop` within every class and slice:
    the most that may be lost against the baseline, in points (100 × the metric; percent of a perplexity), at `confidence`,
    one-sided. `slices`: columns whose slices must have been evaluated. `min_agreement`: the least part of equal answers (for
    numbers the least of the metric against the baseline's, as measured). `max_calibration_rise`: points of expected calibration
    error, as measured. `baseline`: the version it is held against, `dataset` the one (or the version of it) that it must have
    been evaluated on, `metric` what by."""

    max_accuracy_drop: float = Field(ge=0, le=100)
    max_slice_drop: float | None = Field(default=None, ge=0, le=100)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    slices: tuple[str, ...] = ()
    min_agreement: float | None = Field(default=None, ge=0, le=1)
    max_calibration_rise: float | None = Field(default=None, ge=0, le=100)
    baseline: str | None = Field(default=None, min_length=1, max_length=200)
    dataset: str | None = Field(default=None, min_length=1, max_length=200)
    metric: Metric | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """One condition: what was seen, what is sure at the confidence (`bound`), and what is allowed. `needed`: the rows of the
    whole split that would settle it at the seen rates; None where none are needed, or no number would."""

    what: str
    rows: int
    seen: float
    bound: float
    budget: float
    met: bool
    needed: int | None = None

    def to_json(self) -> dict[str, Any]:
        """What is not finite is None."""
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether the gate lets a version pass; `reasons` why not. `rows_needed`: how many rows of the report split would settle
    all of them at the rates that were seen; None where it passes, or no number of rows would. `complete`: the evidence said
    all that the policy asks for, whether that was enough or not."""

    allowed: bool
    reasons: tuple[str, ...] = ()
    rows_needed: int | None = None
    checks: tuple[Check, ...] = ()
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """Of the checks those over all rows, and of the slices the worst that are not met."""
        whole = [check for check in self.checks if "=" not in check.what]
        shown = [check.to_json() for check in whole + _failed_slices(self.checks)[:_KEPT]]
        return {"allowed": self.allowed, "reasons": list(self.reasons), "rows_needed": self.rows_needed, "checks": shown}


def decide(policy: GatePolicy, evidence: Evidence | None) -> Decision:
    """Whether what `evidence` shows is within `policy`. All conditions must be met at once, so many slices need no correction
    of the confidence: a variant that is outside one of the budgets passes with a chance of at most 1 - confidence
    (intersection–union test: R. L. Berger, 1982, Technometrics 24, 295–300)."""
    if evidence is None:
        return Decision(False, (f"It was not evaluated{f' by {policy.metric}' if policy.metric else ''}.",))
    if not counts(policy, evidence):  # its points are others, and say nothing of this budget
        wanted = f"by {policy.metric}" if policy.metric else "by what is usual for these answers"
        return Decision(False, (f"It was evaluated by {evidence.metric}, and not {wanted}.",), complete=False)
    missing = tuple(_missing(policy, evidence))
    checks = tuple(_checks(policy, evidence))
    failed = [check for check in checks if not check.met]
    reasons = (*missing, *_reasons(failed, policy, evidence))
    settles = not missing and failed and all(check.needed is not None for check in failed)
    needed = max((check.needed or 0 for check in failed), default=0) if settles else None
    return Decision(not reasons, reasons, needed, checks, complete=not missing)


def counts(policy: GatePolicy, evidence: Evidence) -> bool:
    """Whether it was evaluated by what the policy judges by: the metric it names, else the usual one. Whoever evaluates does
    not choose what a gate decides by."""
    return evidence.usual if policy.metric is None else evidence.metric == policy.metric


def loosened(present: GatePolicy | None, wanted: GatePolicy | None) -> tuple[str, ...]:
    """The fields in which `wanted` allows what `present` does not, and the whole where it is lifted."""
    if present is None:
        return ()
    if wanted is None:
        return ("the gate",)
    found = [name for name in ("max_accuracy_drop", "max_slice_drop", "max_calibration_rise") if _more(name, present, wanted)]
    found += ["confidence"] if wanted.confidence < present.confidence else []
    least = (present.min_agreement, wanted.min_agreement)
    found += ["min_agreement"] if least[0] is not None and (least[1] is None or least[1] < least[0]) else []
    found += ["slices"] if not set(present.slices) <= set(wanted.slices) else []
    # To name one dataset, or metric, is to leave all others aside, by which it may have done worse.
    found += [name for name in ("dataset", "metric") if getattr(wanted, name) != getattr(present, name)]
    found += ["baseline"] if present.baseline is not None and wanted.baseline != present.baseline else []
    return tuple(found)


def _more(name: str, present: GatePolicy, wanted: GatePolicy) -> bool:
    before, after = getattr(present, name), getattr(wanted, name)
    return before is not None and (after is None or after > before)


def _missing(policy: GatePolicy, evidence: Evidence) -> Iterator[str]:
    """What the policy asks for and the evidence says nothing of."""
    if evidence.split != SPLIT:
        yield f"It was evaluated on the split '{evidence.split}', and not on '{SPLIT}', by which nothing was made or chosen."
    if not evidence.knows:
        seen = f"{evidence.metric} {evidence.original:.3g}"
        yield f"Its baseline knows nothing of these rows ({seen}), so nothing can be lost there."
    elif evidence.losable <= policy.max_accuracy_drop < _ALL:
        seen = f"{evidence.metric} {evidence.original:.3g}"
        yield f"Its baseline has {evidence.losable:.3g} points to lose ({seen}), all of which may be lost: nothing is shown."
    if evidence.tokens is not None and evidence.tokens < TOKENS:
        yield f"Its answers were cut at {evidence.tokens} tokens; at least {TOKENS} are asked for: leave out max_tokens."
    if policy.max_slice_drop is not None and not evidence.by_class:
        yield "It was not evaluated by class: there are more classes than an evaluation can hold."
    elif policy.max_slice_drop is not None and not evidence.slices:
        yield "It was not evaluated by class or slice: add --slice COLUMN."
    for column in policy.slices:
        if column not in evidence.columns:
            yield f"It was not evaluated by '{column}': add --slice {column}."
    if policy.max_calibration_rise is not None and evidence.calibration is None:
        yield "Its calibration is not known: the models give no scores."


def _checks(policy: GatePolicy, evidence: Evidence) -> Iterator[Check]:
    yield _held("all rows", evidence.drop, policy.max_accuracy_drop, policy, evidence)
    if policy.max_slice_drop is not None:
        for name, drop in evidence.slices.items():
            yield _held(name, drop, policy.max_slice_drop, policy, evidence)
    if policy.min_agreement is not None:
        yield _agrees(policy.min_agreement, policy.confidence, evidence)
    if policy.max_calibration_rise is not None and evidence.calibration is not None:
        rise = round(100 * (evidence.calibration[1] - evidence.calibration[0]), 9)
        met = rise <= policy.max_calibration_rise
        yield Check("calibration", evidence.rows, rise, rise, policy.max_calibration_rise, met)


def _held(what: str, drop: Drop, budget: float, policy: GatePolicy, evidence: Evidence) -> Check:
    bound = drop.most(policy.confidence)
    if bound <= budget:  # NaN is not
        return Check(what, drop.rows, drop.drop, bound, budget, True)
    needed = _needed(lambda times: drop.within(budget, policy.confidence, times), evidence.rows)
    return Check(what, drop.rows, drop.drop, bound, budget, False, needed)


def _agrees(budget: float, confidence: float, evidence: Evidence) -> Check:
    least = evidence.least_agreement(confidence)
    met = least >= budget
    needed = None if met else _needed(lambda times: evidence.least_agreement(confidence, times) >= budget, evidence.rows)
    return Check("agreement", evidence.rows, evidence.agreement, least, budget, met, needed)


def _needed(within: Callable[[float], bool], rows: int) -> int | None:
    """Rows of the whole split with which a condition would be met, if what was seen were the truth; `within` says whether it
    would by so many times the rows. None where no number would do."""
    if not within(_MOST_TIMES):
        return None
    low, high = 1.0, _MOST_TIMES
    while high / low > 1.0001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if within(middle) else (middle, high)
    return math.ceil(high * rows)


def _failed_slices(checks: Sequence[Check]) -> list[Check]:
    """The worst first."""
    return sorted((check for check in checks if "=" in check.what and not check.met), key=lambda check: -check.bound)


def _reasons(failed: list[Check], policy: GatePolicy, evidence: Evidence) -> Iterator[str]:
    slices = _failed_slices(failed)
    for check in [check for check in failed if "=" not in check.what] + slices[:_TOLD]:
        yield _sentence(check, policy, evidence)
    if len(slices) > _TOLD:
        yield f"So it is in {len(slices) - _TOLD} more slices."


def _sentence(check: Check, policy: GatePolicy, evidence: Evidence) -> str:
    sure = f"at {policy.confidence:.4g} confidence"
    if check.what == "calibration":
        return f"Its calibration error rises by {check.seen:.2f} points; {check.budget:g} may be added."
    unit, rows = units(evidence.metric)[0], counted(evidence.metric)[0]
    if check.what == "agreement" and evidence.metric in NUMBERS:
        return f"Its answers agree with the baseline's by {evidence.metric} {check.seen:.4f}; {check.budget:g} is asked for."
    if check.what == "agreement":
        tokens = "tokens in " if evidence.metric == "perplexity" else ""
        seen = f"It answers as the baseline does in {check.seen:.4f} of {tokens}{check.rows:,} {rows}"
        return f"{seen}, {sure} at least {check.bound:.4f}; {check.budget:g} is asked for. {_settles(check, evidence)}"
    where = f"of all {rows}" if check.what == "all rows" else f"where {check.what}"
    if not check.rows:
        return f"No row was evaluated {where}; {check.budget:g} {unit} may be lost there."
    bound = f"up to {check.bound:.2f}" if math.isfinite(check.bound) else "an unknown number"
    seen = f"It loses {check.seen:.2f} {unit} {where} ({check.rows:,}), {sure} {bound}; {check.budget:g} may be lost."
    return f"{seen} {_settles(check, evidence)}"


def _settles(check: Check, evidence: Evidence) -> str:
    rows = counted(evidence.metric)[0]
    if check.needed is None:
        return f"No number of {rows} would settle it at this rate."
    return f"About {check.needed:,} {rows} of the report split would settle it at this rate; there were {evidence.rows:,}."
