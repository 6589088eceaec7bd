"""What an evaluation found, as a value that the gate decides by: counts of rows rather than intervals, so that a bound at any
confidence can be read off later. JSON both ways; what is no evidence is refused here.

Made by `comparison` from predictions, kept by the catalogue as JSON, read by `gate`. It knows no model and no dataset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast, get_args

from modelyard.errors import Invalid
from modelyard.optimisation.intervals import most, refuted, wilson

Counted = Literal["wer", "bleu", "chrf", "rouge", "mrr", "recall@1", "recall@10"]
Metric = Literal["accuracy", "r2", "spearman", "perplexity", Counted]
COUNTED = frozenset(get_args(Counted))  # metrics of `counts`: a mean, or of sums, over rows
SHARES = frozenset({"accuracy", "recall@1", "recall@10"})  # of rows that are right
NUMBERS = frozenset({"r2", "spearman"})  # metrics of numbers: how alike these are is no share of anything
ERRORS = frozenset({"wer"})  # metrics of which more is worse, 0 is perfect, and 1 what no answer would have
TOKENS = 128  # of each answer of a language model, unless an evaluation says another number
_FEWEST = 30  # rows, below which resampling says nothing
_STEPS = 200  # between the quantiles that are kept, of 0 to 1
_SUREST = 0.999  # that a thousand resamples can be
_UNSURE = 0.2  # of what no row shows nobody is less sure than at 80 %


@dataclass(frozen=True, slots=True)
class Paired:
    """How many rows both models had right, the original alone, the variant alone, neither."""

    both: int
    original: int
    variant: int
    neither: int

    @property
    def rows(self) -> int:
        return self.both + self.original + self.variant + self.neither

    @property
    def drop(self) -> float:
        """What the variant loses, in points (percentage points of accuracy); NaN without rows."""
        return round(100 * (self.original - self.variant) / self.rows, 9) if self.rows else math.nan

    def most(self, confidence: float, times: float = 1.0) -> float:
        """The drop in points that is not exceeded, at this confidence; were there `times` as many rows at the same rates."""
        bound = most(times * self.original, times * self.variant, times * self.rows, confidence)
        return round(100 * bound, 9)  # 1 of 100 rows is 1.0 points, not past a budget of 1

    def within(self, budget: float, confidence: float, times: float) -> bool:
        """Whether `most` would be within a budget: quicker, for who tries many."""
        return refuted(budget / 100, times * self.original, times * self.variant, times * self.rows, confidence)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Paired:
        counts = [body[name] for name in ("both", "original", "variant", "neither")]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"counts are whole and not negative, not {counts}")
        return cls(*counts)


@dataclass(frozen=True, slots=True)
class Resampled:
    """A drop in points (100 × the metric, percent of a perplexity) over so many rows, and its quantiles over resamples, at even
    steps. `worst`: the points that the heaviest row is worth, if all of it is lost; 0 where a row has no such worth (numbers,
    perplexity). Rows of a perplexity are independent blocks of texts."""

    rows: int
    drop: float
    quantiles: tuple[float, ...]
    worst: float = 0.0

    @classmethod
    def of(cls, rows: int, drop: float, drawn: Sequence[float], worst: float = 0.0) -> Resampled:
        """From the drop in each resample, sorted."""
        places = (math.ceil(step * (len(drawn) - 1) / _STEPS) for step in range(_STEPS + 1))
        return cls(rows, float(drop), tuple(round(float(drawn[place]), 6) for place in places), worst)

    def most(self, confidence: float, times: float = 1.0) -> float:
        """As `Paired.most`: the quantile next above, drawn in towards the drop as √`times`; and above it what may be lost in
        rows of a kind that none was seen of, -ln(1 - confidence) of the heaviest, as is exact where no row differs. Infinite
        where that is more than resampling can say: with few rows, or a confidence above 99.9 %."""
        if self.rows * times < _FEWEST or confidence > _SUREST:
            return math.inf
        bound = max(self.drop, self.quantiles[math.ceil(confidence * (len(self.quantiles) - 1) - 1e-9)])
        unseen = -math.log(min(1 - confidence, _UNSURE)) * self.worst
        return self.drop + (bound - self.drop) / math.sqrt(times) + unseen / times

    def within(self, budget: float, confidence: float, times: float) -> bool:
        return self.most(confidence, times) <= budget

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "drop": self.drop, "quantiles": list(self.quantiles), "worst": self.worst}

    @classmethod
    def from_json(cls, body: Mapping[str, Any], counted: bool = False) -> Resampled:
        """`counted`: whether the metric is of `COUNTED`, of which evidence of before has rows that weigh alike."""
        rows, drop, quantiles = body["rows"], _number(body["drop"]), tuple(_number(value) for value in body["quantiles"])
        if type(rows) is not int or rows < 0 or len(quantiles) != _STEPS + 1 or list(quantiles) != sorted(quantiles):
            raise ValueError(f"a resampled drop has a number of rows and {_STEPS + 1} quantiles in order")
        worst = _number(body.get("worst", 100 / rows if counted and rows else 0.0))
        if worst < 0:
            raise ValueError(f"a row is worth no less than nothing, not {worst}")
        return cls(rows, drop, quantiles, worst)


Drop = Paired | Resampled


@dataclass(frozen=True, slots=True)
class Evidence:
    """A variant beside its original on the same rows of one split. `original` and `variant` are the models' scores by `metric`;
    `drop` the loss over all rows, `slices` within some, as 'label=shirt' or 'COLUMN=value'. `agreement` is how alike they
    answer, up to 1 (equal labels, texts, places or likeliest tokens; of numbers the metric of the variant's against the
    original's).
    `calibration`: expected calibration error of the original and the variant (15 bins of equal mass), None where no scores are
    known. `columns`: those that slices were asked for by. `left_out`: rows of the split that were not counted, because they are
    in another one too. `usual`: by the metric that nobody had to ask for. `tokens`: the most of each answer, of language
    models. `by_class`: not where there are so many classes that they were left out of the slices."""

    metric: Metric
    split: str
    original: float
    variant: float
    drop: Drop
    agreement: float
    calibration: tuple[float, float] | None = None
    slices: Mapping[str, Drop] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    left_out: int = 0
    usual: bool = True
    tokens: int | None = None
    by_class: bool = True

    @property
    def rows(self) -> int:
        return self.drop.rows

    @property
    def knows(self) -> bool:
        """Whether the original is better than no answer at all; beside one that is not nothing can be lost."""
        return self.original < 1 if self.metric in ERRORS else self.original > 0

    @property
    def losable(self) -> float:
        """The points that whoever answers nothing right would lose; infinite where there is no end to them."""
        if self.metric not in COUNTED | SHARES:
            return math.inf
        return 100 * (1 - self.original if self.metric in ERRORS else self.original)

    def least_agreement(self, confidence: float, times: float = 1.0) -> float:
        """The agreement that is reached at this confidence: Wilson's lower bound of equal answers, were there `times` as many
        rows at this rate; for numbers as it was seen. A row of several tokens counts as if all were equal or none."""
        if self.metric in NUMBERS:
            return self.agreement
        rows = times * self.rows
        return wilson(min(rows, self.agreement * rows), rows, 2 * confidence - 1).low

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "split": self.split,
            "rows": self.rows,
            "left_out": self.left_out,
            "original": self.original,
            "variant": self.variant,
            "drop": self.drop.to_json(),
            "slices": {name: one.to_json() for name, one in self.slices.items()},
            "columns": list(self.columns),
            "agreement": self.agreement,
            "calibration": list(self.calibration) if self.calibration else None,
            "usual": self.usual,
            "tokens": self.tokens,
            "by_class": self.by_class,
        }

    @classmethod
    def from_json(cls, body: Any) -> Evidence:
        """Raises `Invalid` for anything that is not whole: a figure that is missing or no number, counts that do not add up."""
        try:
            return cls._read(body)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise Invalid(
                f"The evaluation is no evidence: {type(error).__name__}: {error}. Evaluate the version again."
            ) from error

    @classmethod
    def _read(cls, body: Mapping[str, Any]) -> Evidence:
        metric = body["metric"]
        if metric not in get_args(Metric):
            raise ValueError(f"the metric is {str(metric)[:40]!r}, expected one of {', '.join(get_args(Metric))}")
        paired = metric == "accuracy" or (metric in SHARES and "both" in body["drop"])  # places were resampled before

        def read(one: Mapping[str, Any]) -> Drop:
            return Paired.from_json(one) if paired else Resampled.from_json(one, metric in COUNTED)

        drop, calibration = read(body["drop"]), body["calibration"]
        slices = {str(name): read(one) for name, one in body["slices"].items()}
        if drop.rows < 1 or drop.rows != body["rows"] or any(one.rows > drop.rows for one in slices.values()):
            raise ValueError("its rows do not add up")
        return cls(
            cast(Metric, metric),
            str(body["split"]),
            _number(body["original"]),
            _number(body["variant"]),
            drop,
            _number(body["agreement"]),
            (_number(calibration[0]), _number(calibration[1])) if calibration is not None else None,
            slices,
            tuple(str(name) for name in body["columns"]),
            int(body["left_out"]),
            bool(body.get("usual", True)),  # evidence of before has none of these
            None if body.get("tokens") is None else int(body["tokens"]),
            bool(body.get("by_class", True)),
        )


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no finite number")
    return float(value)
